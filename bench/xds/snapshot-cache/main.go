// Serves what `serve dump` wrote from the snapshot cache of go-control-plane, one snapshot for all clients, which is
// its cheapest use. For each line that it reads the next change becomes a new snapshot.
package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protodelim"

	_ "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
)

// One snapshot for all.
type all struct{}

func (all) ID(*core.Node) string { return "all" }

func main() {
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(listen, dump string) error {
	file, err := os.Open(dump)
	if err != nil {
		return err
	}
	reader := bufio.NewReader(file)
	resources := map[string]map[string]types.Resource{}
	for {
		found, err := next(reader, resources)
		if err != nil {
			return err
		}
		if !found {
			break
		}
	}
	snapshots := cache.NewSnapshotCache(true, all{}, nil)
	version := 0
	publish := func() error {
		version++
		lists := map[resource.Type][]types.Resource{}
		for kind, byName := range resources {
			for _, one := range byName {
				lists[kind] = append(lists[kind], one)
			}
		}
		snapshot, err := cache.NewSnapshot(strconv.Itoa(version), lists)
		if err != nil {
			return err
		}
		return snapshots.SetSnapshot(context.Background(), "all", snapshot)
	}
	if err := publish(); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	serving := grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(serving, server.NewServer(context.Background(), snapshots, nil))
	go serving.Serve(listener)
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		if _, err := next(reader, resources); err != nil {
			return err
		}
		if err := publish(); err != nil {
			return err
		}
	}
	return lines.Err()
}

// Puts the next resource of the dump among the others; false at the end of a part.
func next(reader *bufio.Reader, resources map[string]map[string]types.Resource) (bool, error) {
	var one discovery.Resource
	options := protodelim.UnmarshalOptions{MaxSize: 64 << 20}
	if err := options.UnmarshalFrom(reader, &one); err != nil {
		if err == io.EOF {
			return false, fmt.Errorf("the dump has no more steps")
		}
		return false, err
	}
	if one.Name == "" {
		return false, nil
	}
	message, err := one.Resource.UnmarshalNew()
	if err != nil {
		return false, err
	}
	kind := one.Resource.TypeUrl
	if resources[kind] == nil {
		resources[kind] = map[string]types.Resource{}
	}
	resources[kind][one.Name] = message
	return true, nil
}
