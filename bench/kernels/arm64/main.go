// Command arm64 is all that runs in a guest of 64-bit Arm, for this machine's files are another
// machine's. It has the kernel verify the programs, attaches those that name a hook, makes HTTP
// requests and says on the console what was seen of them, in one line of JSON.
package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/cilium/ebpf/rlimit"
)

const (
	object   = "/tracer.bpf.o"
	requests = 20
	exchange = 1 // enum flow_kind
)

// answer is what bench/kernels/arm64.py reads. Seen: exchanges by role, method, status and path.
type answer struct {
	Release  string         `json:"release"`
	Programs int            `json:"programs"`
	Attached []string       `json:"attached"`
	Made     int            `json:"made"`
	Seen     map[string]int `json:"seen"`
	Error    string         `json:"error"`
}

func main() {
	var said answer
	if err := look(&said); err != nil {
		said.Error = err.Error()
		var rejected *ebpf.VerifierError
		if errors.As(err, &rejected) {
			fmt.Printf("%+v\n", rejected)
		}
	}
	line, _ := json.Marshal(said)
	fmt.Printf("\nwirespan: %s\n", line)
	syscall.Sync()
	_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
}

func look(said *answer) error {
	if err := settle(); err != nil {
		return err
	}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return err
	}
	said.Release = strings.TrimSpace(string(release))
	spec, err := ebpf.LoadCollectionSpec(object)
	if err != nil {
		return fmt.Errorf("%s: %w", object, err)
	}
	for _, program := range spec.Programs {
		switch kind, _, _ := strings.Cut(program.SectionName, "/"); kind {
		case "raw_tp": // one without a hook's name is called by others
			program.Type = ebpf.RawTracepoint
		case "uprobe.multi": // as the tracer does: its type needs no kernel of 6.6
			program.Type, program.AttachType = ebpf.Kprobe, 0
		}
	}
	if err := rlimit.RemoveMemlock(); err != nil { // before 5.11 maps count towards it
		return err
	}
	programs, err := ebpf.NewCollection(spec)
	if err != nil {
		return err
	}
	defer programs.Close()
	said.Programs = len(programs.Programs)
	for name, program := range spec.Programs {
		hook, found := strings.CutPrefix(program.SectionName, "raw_tp/")
		if !found {
			continue
		}
		attached, err := link.AttachRawTracepoint(
			link.RawTracepointOptions{Name: hook, Program: programs.Programs[name]})
		if err != nil {
			return fmt.Errorf("%s: %w", hook, err)
		}
		defer attached.Close()
		said.Attached = append(said.Attached, hook)
	}
	if err := programs.Variables["cfg_ready"].Set(uint32(1)); err != nil {
		return err
	}
	records, err := ringbuf.NewReader(programs.Maps["records"])
	if err != nil {
		return err
	}
	defer records.Close()
	if said.Made, err = talk(); err != nil {
		return err
	}
	said.Seen, err = read(spec, records)
	return err
}

// settle makes of the first process of a kernel one that can work.
func settle() error {
	for place, kind := range map[string]string{"/proc": "proc", "/sys": "sysfs"} {
		if err := os.MkdirAll(place, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount(kind, place, kind, 0, ""); err != nil {
			return fmt.Errorf("%s: %w", place, err)
		}
	}
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	var request struct { // struct ifreq
		name  [16]byte
		flags uint16
		_     [22]byte
	}
	copy(request.name[:], "lo")
	request.flags = syscall.IFF_UP
	_, _, code := syscall.Syscall(
		syscall.SYS_IOCTL, uintptr(fd), syscall.SIOCSIFFLAGS, uintptr(unsafe.Pointer(&request)))
	if code != 0 {
		return fmt.Errorf("lo: %w", code)
	}
	return nil
}

// talk makes requests of a server of its own, the half of them on a connection that stays open.
func talk() (int, error) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer listener.Close()
	go http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusTeapot)
		fmt.Fprintln(w, "short and stout")
	}))
	for n := range requests {
		client := &http.Client{
			Transport: &http.Transport{DisableKeepAlives: n >= requests/2},
			Timeout:   time.Minute,
		}
		if n < requests/2 {
			client.Transport = nil
		}
		response, err := client.Get("http://" + listener.Addr().String() + "/pot")
		if err != nil {
			return n, err
		}
		if _, err := io.Copy(io.Discard, response.Body); err != nil {
			return n, err
		}
		response.Body.Close()
	}
	return requests, nil
}

// read counts the exchanges that the programs handed over.
func read(spec *ebpf.CollectionSpec, records *ringbuf.Reader) (map[string]int, error) {
	var record *btf.Struct
	if err := spec.Types.TypeByName("flow_record", &record); err != nil {
		return nil, err
	}
	at := map[string]uint32{}
	for _, member := range record.Members {
		at[member.Name] = member.Offset.Bytes()
	}
	roles := map[byte]string{1: "client", 2: "server"}
	seen := map[string]int{}
	records.SetDeadline(time.Now().Add(5 * time.Second))
	for {
		found, err := records.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return seen, nil
		} else if err != nil {
			return nil, err
		}
		raw := found.RawSample
		if raw[at["kind"]] != exchange {
			continue
		}
		status := binary.LittleEndian.Uint32(raw[at["status"]:])
		fields := raw[at["fields"]:] // the first one is the target; its length follows its place
		length := binary.LittleEndian.Uint16(fields[2:])
		target := raw[at["text"]:][:length]
		seen[fmt.Sprintf("%s %d %s", roles[raw[at["role"]]], status, target)]++
	}
}
