// Asks a gRPC server how it is, as `grpc-health HOST:PORT CALLS`: that many calls over one connection, as gRPC's
// clients do. Fails unless it is well each time.
package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	health "google.golang.org/grpc/health/grpc_health_v1"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	if len(arguments) != 2 {
		return fmt.Errorf("usage: grpc-health HOST:PORT CALLS")
	}
	calls, err := strconv.Atoi(arguments[1])
	if err != nil {
		return err
	}
	connection, err := grpc.NewClient("dns:///"+arguments[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	client := health.NewHealthClient(connection)
	for range calls {
		answer, err := client.Check(ctx, &health.HealthCheckRequest{})
		if err != nil {
			return err
		}
		if answer.Status != health.HealthCheckResponse_SERVING {
			return fmt.Errorf("it is %v", answer.Status)
		}
	}
	fmt.Printf("SERVING after %d calls\n", calls)
	return nil
}
