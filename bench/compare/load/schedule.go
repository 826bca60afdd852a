// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// schedule returns the requests of `length` as they come due, closed after the last.
func (t *target) schedule(begin time.Time, length time.Duration) (<-chan asked, error) {
	if t.rate > 0 {
		return paced(begin, length, time.Duration(float64(time.Second)/t.rate))
	}
	requests := make(chan asked)
	go func() {
		for n := 0; time.Since(begin) < length; n++ {
			requests <- asked{n: n}
		}
		close(requests)
	}()
	return requests, nil
}

// paced is woken by a timer of the kernel: the runtime's own are rounded to whole milliseconds
// where a program has nothing else to do, and requests would come in bursts.
func paced(begin time.Time, length, every time.Duration) (<-chan asked, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	timer := os.NewFile(uintptr(fd), "timer")
	tick := unix.NsecToTimespec(every.Nanoseconds())
	set := unix.ItimerSpec{Interval: tick, Value: tick}
	if err := unix.TimerfdSettime(fd, 0, &set, nil); err != nil {
		return nil, err
	}
	total := int(length / every)
	// Room for all: a service that falls behind must not slow the clock.
	requests := make(chan asked, total)
	go func() {
		defer timer.Close()
		defer close(requests)
		var times [8]byte
		for n := 0; n < total; {
			if _, err := timer.Read(times[:]); err != nil {
				return
			}
			for range min(int(binary.NativeEndian.Uint64(times[:])), total-n) {
				n++
				requests <- asked{n: n, due: begin.Add(time.Duration(n) * every)}
			}
		}
	}()
	return requests, nil
}
