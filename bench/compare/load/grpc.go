// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"strconv"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	service = "wirespan.bench.Echo"
	// Workers that share a connection.
	streams = 8
)

// serve answers Say with what it was sent.
func serve() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	say := func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		var message wrapperspb.StringValue
		err := decode(&message)
		return &message, err
	}
	server := grpc.NewServer()
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: service,
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "Say", Handler: say}},
	}, nil)
	fmt.Println(listener.Addr())
	return server.Serve(listener)
}

func openGRPC(p *pool, address string, count int) error {
	var conn *grpc.ClientConn
	for i := range count {
		if i%streams == 0 {
			var err error
			conn, err = grpc.NewClient(address,
				grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				return err
			}
			p.closers = append(p.closers, conn)
		}
		shared := conn
		p.workers = append(p.workers, func(n int) error {
			sent := wrapperspb.String("item " + strconv.Itoa(n))
			var got wrapperspb.StringValue
			err := shared.Invoke(context.Background(), "/"+service+"/Say", sent, &got)
			if err == nil && got.Value != sent.Value {
				return fmt.Errorf("sent %q, got %q", sent.Value, got.Value)
			}
			return err
		})
	}
	return nil
}
