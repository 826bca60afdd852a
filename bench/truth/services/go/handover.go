// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"golang.org/x/sync/errgroup"
)

// atOnce makes all calls of a request at the same time.
func atOnce(ctx context.Context, r request) error {
	group, ctx := errgroup.WithContext(ctx)
	for k := range calls {
		group.Go(func() error { return get(ctx, r.id, k, r.delay(k)) })
	}
	return group.Wait()
}

// job is a call on its way to a worker.
type job struct {
	ctx   context.Context
	id    string
	k     int
	delay string
	done  chan<- error
}

// handOver starts workers and returns a call that one of them makes; room: for calls that wait.
func handOver(workers, room int) call {
	jobs := make(chan job, room)
	for range workers {
		go func() {
			for j := range jobs {
				j.done <- get(j.ctx, j.id, j.k, j.delay)
			}
		}()
	}
	return func(ctx context.Context, id string, k int, delay string) error {
		done := make(chan error, 1)
		jobs <- job{ctx, id, k, delay, done}
		return <-done
	}
}
