package wasmhost

import (
	"crypto/rand"
	"encoding/binary"
	"strings"
)

// Errors of WASI.
const (
	errnoBadf   result = 8
	errnoExist  result = 20
	errnoFault  result = 21
	errnoInval  result = 28
	errnoNoent  result = 44
	errnoNosys  result = 52
	errnoNotsup result = 58
	maxRandom          = 64 << 10 // bytes at a time
	maxVectors         = 1 << 10
	wasiEvent          = 32 // bytes of an event
	wasiRequest        = 48 // bytes of a subscription
)

// wasi are the functions of both of WASI's modules. There are no files, folders or
// sockets; what is written to standard output and error is logged. What is not there
// fails as it does in Envoy, which a test asks.
func wasi() map[string]func(call) result {
	all := map[string]func(call) result{
		"args_get":          func(call) result { return ok },
		"args_sizes_get":    func(c call) result { return written(c.put(0, 0) && c.put(1, 0)) },
		"environ_get":       call.environGet,
		"environ_sizes_get": call.environSizes,
		"clock_res_get":     func(c call) result { return written(c.put64(1, 1)) },
		"clock_time_get":    call.clockTime,
		"random_get":        call.random,
		"fd_write":          call.fdWrite,
		"fd_fdstat_get":     call.fdStat,
		"fd_close":          call.standard,
		"fd_seek":           call.standard,
		"fd_prestat_get":    func(call) result { return errnoBadf },
		"path_open":         func(call) result { return errnoNoent },
		"poll_oneoff":       call.poll,
		"sched_yield":       func(call) result { return ok },
		"proc_exit":         func(call) result { return ok }, // Envoy does not heed it
		"fd_advise":         func(call) result { return ok },
	}
	for errno, names := range map[result]string{
		errnoBadf: `fd_allocate fd_datasync fd_fdstat_set_rights fd_filestat_get fd_filestat_set_size fd_filestat_set_times fd_pwrite
			fd_renumber fd_sync fd_tell`,
		errnoExist: `fd_readdir`,
		errnoNosys: `fd_fdstat_set_flags fd_pread fd_prestat_dir_name fd_read`,
		errnoNotsup: `path_create_directory path_filestat_get path_filestat_set_times path_link path_readlink path_remove_directory
			path_rename path_symlink path_unlink_file sock_accept sock_recv sock_send sock_shutdown`,
	} {
		for _, name := range strings.Fields(names) {
			all[name] = func(call) result { return errno }
		}
	}
	return all
}

func written(done bool) result {
	if !done {
		return errnoFault
	}
	return ok
}

// standard answers for a descriptor that is standard input, output or error.
func (c call) standard() result {
	if c.i32(0) > 2 {
		return errnoBadf
	}
	return ok
}

func (c call) environSizes() result {
	entries, size := c.h.environ()
	return written(c.put(0, uint32(len(entries))) && c.put(1, uint32(size)))
}

func (c call) environGet() result {
	entries, _ := c.h.environ()
	at, m := c.i32(1), c.module.Memory()
	for i, e := range entries {
		if !m.WriteUint32Le(c.i32(0)+uint32(4*i), at) || !m.Write(at, e) {
			return errnoFault
		}
		at += uint32(len(e))
	}
	return ok
}

func (c call) clockTime() result {
	const realtime, monotonic = 0, 1
	if id := c.i32(0); id != realtime && id != monotonic {
		return errnoNotsup
	}
	return written(c.put64(2, uint64(c.h.time().UnixNano())))
}

func (c call) random() result {
	if c.i32(1) > maxRandom {
		return errnoInval
	}
	b := make([]byte, c.i32(1))
	_, _ = rand.Read(b) // it never fails
	return written(c.module.Memory().Write(c.i32(0), b))
}

func (c call) fdWrite() result {
	const stdout, stderr = 1, 2
	level := LevelInfo
	switch c.i32(0) {
	case stdout:
	case stderr:
		level = LevelError
	default:
		return errnoBadf
	}
	if c.i32(2) > maxVectors {
		return errnoInval
	}
	var text []byte
	for i := range c.i32(2) {
		vector, there := c.module.Memory().Read(c.i32(1)+8*i, 8)
		if !there {
			return errnoFault
		}
		part, there := c.module.Memory().Read(binary.LittleEndian.Uint32(vector), binary.LittleEndian.Uint32(vector[4:]))
		if !there {
			return errnoFault
		}
		text = append(text, part...)
		if len(text) > maxEntry {
			return errnoInval
		}
	}
	for line := range strings.Lines(string(text)) {
		c.h.write(level, strings.TrimRight(line, "\r\n"))
	}
	return written(c.put(3, uint32(len(text))))
}

// fdStat says that standard output and error are character devices that can be
// written to.
func (c call) fdStat() result {
	const device, appends = 2, 1
	if fd := c.i32(0); fd != 1 && fd != 2 {
		return errnoBadf
	}
	stat := make([]byte, 24)
	stat[0], stat[2] = device, appends
	binary.LittleEndian.PutUint64(stat[8:], 64) // fd_write
	return written(c.module.Memory().Write(c.i32(1), stat))
}

// poll answers every wait for a clock at once: nothing else goes on here meanwhile.
func (c call) poll() result {
	n := c.i32(2)
	if n > maxVectors {
		return errnoInval
	}
	for i := range n {
		request, there := c.module.Memory().Read(c.i32(0)+wasiRequest*i, wasiRequest)
		if !there {
			return errnoFault
		}
		event := make([]byte, wasiEvent)
		copy(event, request[:8]) // whose it is
		if kind := request[8]; kind != 0 {
			binary.LittleEndian.PutUint16(event[8:], uint16(errnoNosys))
			event[10] = kind
		}
		if !c.module.Memory().Write(c.i32(1)+wasiEvent*i, event) {
			return errnoFault
		}
	}
	return written(c.put(3, n))
}
