// Program grpc-xds calls a server again and again by a target of gRPC's own xDS client, and prints a line for each call.
//
// grpc-xds TARGET PAUSE_MS [NAME=VALUE…], the rest being metadata of each call. It ends with its standard input.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	_ "google.golang.org/grpc/xds"
)

const method = "/eastway.test.Echo/Say"

// raw takes messages as the bytes they are.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

func (raw) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}

func (raw) Name() string { return "raw" }

type line struct {
	OK     string `json:"ok,omitempty"`
	Error  string `json:"error,omitempty"`
	Detail string `json:"detail,omitempty"`
	Millis int64  `json:"millis"`
}

func main() {
	pause, err := strconv.Atoi(os.Args[2])
	fail(err)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	client, err := grpc.NewClient(os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	fail(err)
	var pairs []string
	for _, pair := range os.Args[3:] {
		name, value, _ := strings.Cut(pair, "=")
		pairs = append(pairs, name, value)
	}
	for {
		begun := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		ctx = metadata.AppendToOutgoingContext(ctx, pairs...)
		request, answer := []byte("hello"), []byte{}
		err := client.Invoke(ctx, method, &request, &answer, grpc.ForceCodec(raw{}))
		cancel()
		said := line{OK: string(answer), Millis: time.Since(begun).Milliseconds()}
		if failed := status.Convert(err); err != nil {
			said.Error, said.Detail = names[failed.Code().String()], failed.Message()
		}
		text, err := json.Marshal(said)
		fail(err)
		fmt.Println(string(text))
		time.Sleep(time.Duration(pause) * time.Millisecond)
	}
}

// names of codes as the other clients spell them; of those that a client makes itself.
var names = map[string]string{
	"Unavailable":       "UNAVAILABLE",
	"DeadlineExceeded":  "DEADLINE_EXCEEDED",
	"Unknown":           "UNKNOWN",
	"Internal":          "INTERNAL",
	"ResourceExhausted": "RESOURCE_EXHAUSTED",
	"Canceled":          "CANCELLED",
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
