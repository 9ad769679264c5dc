package proxywasm

import (
	"maps"
	"slices"
	"strings"
)

// signature is a function's type, a letter a value: "iI>i" is (i32 i64) -> i32.
// Types that no host function has are '?'.
type signature string

func letter(valueType byte) byte {
	switch valueType {
	case 0x7f:
		return 'i'
	case 0x7e:
		return 'I'
	case 0x7d:
		return 'f'
	case 0x7c:
		return 'F'
	}
	return '?'
}

// String writes the type as people do: "(i32 i64) -> i32".
func (s signature) String() string {
	params, results, _ := strings.Cut(string(s), ">")
	if results == "" {
		return "(" + spell(params) + ")"
	}
	return "(" + spell(params) + ") -> " + spell(results)
}

func spell(letters string) string {
	const shown = 16
	var words []string
	for i, l := range letters {
		if i == shown {
			words = append(words, "...")
			break
		}
		switch l {
		case 'i':
			words = append(words, "i32")
		case 'I':
			words = append(words, "i64")
		case 'f':
			words = append(words, "f32")
		case 'F':
			words = append(words, "f64")
		default:
			words = append(words, "other")
		}
	}
	return strings.Join(words, " ")
}

// The functions that Envoy 1.40 offers to a module, as it told itself when it was
// asked for each with a wrong type.
const (
	envFunctions = `
		pthread_equal ii>i
		emscripten_notify_memory_growth i>
	`
	// proxyFunctions stand in module env with the prefix "proxy_".
	proxyFunctions = `
		log iii>i
		get_status iii>i
		set_property iiii>i
		get_property iiii>i
		send_local_response iiiiiiii>i
		get_shared_data iiiii>i
		set_shared_data iiiii>i
		register_shared_queue iii>i
		resolve_shared_queue iiiii>i
		dequeue_shared_queue iii>i
		enqueue_shared_queue iii>i
		get_header_map_value iiiii>i
		add_header_map_value iiiii>i
		replace_header_map_value iiiii>i
		remove_header_map_value iii>i
		get_header_map_pairs iii>i
		set_header_map_pairs iii>i
		get_header_map_size ii>i
		get_buffer_status iii>i
		get_buffer_bytes iiiii>i
		set_buffer_bytes iiiii>i
		http_call iiiiiiiiii>i
		grpc_call iiiiiiiiiiii>i
		grpc_stream iiiiiiiii>i
		grpc_close i>i
		grpc_cancel i>i
		grpc_send iiii>i
		set_tick_period_milliseconds i>i
		get_current_time_nanoseconds i>i
		define_metric iiii>i
		increment_metric iI>i
		record_metric iI>i
		get_metric ii>i
		set_effective_context i>i
		done >i
		call_foreign_function iiiiii>i
	`
	proxyFunctions010 = `
		get_configuration ii>i
		continue_request >i
		continue_response >i
		clear_route_cache >i
	`
	proxyFunctions020 = `
		continue_stream i>i
		close_stream i>i
	`
	proxyFunctions021 = proxyFunctions020 + `
		get_log_level i>i
	`
	// wasiFunctions stand in modules wasi_snapshot_preview1 and wasi_unstable.
	wasiFunctions = `
		args_get ii>i
		args_sizes_get ii>i
		environ_get ii>i
		environ_sizes_get ii>i
		clock_res_get ii>i
		clock_time_get iIi>i
		fd_advise iIIi>i
		fd_allocate iII>i
		fd_close i>i
		fd_datasync i>i
		fd_fdstat_get ii>i
		fd_fdstat_set_flags ii>i
		fd_fdstat_set_rights iII>i
		fd_filestat_get ii>i
		fd_filestat_set_size iI>i
		fd_filestat_set_times iIIi>i
		fd_pread iiiIi>i
		fd_prestat_get ii>i
		fd_prestat_dir_name iii>i
		fd_pwrite iiiIi>i
		fd_read iiii>i
		fd_readdir iiiIi>i
		fd_renumber ii>i
		fd_seek iIii>i
		fd_sync i>i
		fd_tell ii>i
		fd_write iiii>i
		path_create_directory iii>i
		path_filestat_get iiiii>i
		path_filestat_set_times iiiiIIi>i
		path_link iiiiii>i
		path_open iiiiiIIii>i
		path_readlink iiiiii>i
		path_remove_directory iii>i
		path_rename iiiiii>i
		path_symlink iiii>i
		path_unlink_file iii>i
		poll_oneoff iiii>i
		proc_exit i>
		random_get ii>i
		sched_yield >i
		sock_accept iii>i
		sock_recv iiiiii>i
		sock_send iiiii>i
		sock_shutdown ii>i
	`
)

// abiVersions are the ABI versions that Envoy knows.
func abiVersions() []string { return []string{"0.1.0", "0.2.0", "0.2.1"} }

// read adds the lines of a table to types.
func read(types map[string]signature, prefix, table string) {
	words := strings.Fields(table)
	for i := 0; i < len(words); i += 2 {
		types[prefix+words[i]] = signature(words[i+1])
	}
}

// hostFunctions gives the type of every function that Envoy offers to a module
// of an ABI version, by "module.name".
func hostFunctions(abi string) map[string]signature {
	host := map[string]signature{}
	read(host, "env.", envFunctions)
	read(host, "env.proxy_", proxyFunctions)
	read(host, "env.proxy_", map[string]string{"0.1.0": proxyFunctions010, "0.2.0": proxyFunctions020, "0.2.1": proxyFunctions021}[abi])
	read(host, "wasi_snapshot_preview1.", wasiFunctions)
	read(host, "wasi_unstable.", wasiFunctions)
	return host
}

// HostFunctions gives the type of every function that Envoy offers to a module of an
// ABI version, by "module.name". A letter is a value, i for i32 and I for i64: "iI>i"
// is (i32 i64) -> i32.
func HostFunctions(abi string) map[string]string {
	all := map[string]string{}
	for name, s := range hostFunctions(abi) {
		all[name] = string(s)
	}
	return all
}

// The exports whose types Envoy checks when it loads a module. Only in version
// 0.1.0 the callbacks for headers are not told of the end of the stream.
const (
	callbacks = `
		malloc i>i
		proxy_on_memory_allocate i>i
		proxy_on_context_create ii>
		proxy_on_vm_start ii>i
		proxy_on_configure ii>i
		proxy_validate_configuration ii>i
		proxy_on_tick i>
		proxy_on_new_connection i>i
		proxy_on_downstream_data iii>i
		proxy_on_upstream_data iii>i
		proxy_on_downstream_connection_close ii>
		proxy_on_upstream_connection_close ii>
		proxy_on_request_body iii>i
		proxy_on_request_trailers ii>i
		proxy_on_request_metadata ii>i
		proxy_on_response_body iii>i
		proxy_on_response_trailers ii>i
		proxy_on_response_metadata ii>i
		proxy_on_http_call_response iiiii>
		proxy_on_grpc_receive_initial_metadata iii>
		proxy_on_grpc_receive iii>
		proxy_on_grpc_receive_trailing_metadata iii>
		proxy_on_grpc_close iii>
		proxy_on_queue_ready ii>
		proxy_on_done i>i
		proxy_on_log i>
		proxy_on_delete i>
	`
	callbacks010 = `
		proxy_on_request_headers ii>i
		proxy_on_response_headers ii>i
	`
	callbacks020 = `
		proxy_on_request_headers iii>i
		proxy_on_response_headers iii>i
		proxy_on_foreign_function iii>
	`
	entries = `
		_initialize >
		_start >
		main ii>i
		__main_void >i
	`
)

// askedFor holds the names of all exports that any version of the ABI looks at.
func askedFor() map[string]signature {
	all := map[string]signature{}
	read(all, "", callbacks+callbacks020+entries)
	return all
}

// checkedExports gives the type that each export must have, if it is there. What
// Envoy does not ask for it does not check: of malloc and its older name only the
// one that is used, main only after _initialize, and _start only without it.
func checkedExports(abi string, has func(string) bool) map[string]signature {
	want := map[string]signature{}
	read(want, "", callbacks+entries)
	if abi == "0.1.0" {
		read(want, "", callbacks010)
	} else {
		read(want, "", callbacks020)
	}
	without := func(unless bool, name string) {
		if unless {
			delete(want, name)
		}
	}
	without(has("malloc"), "proxy_on_memory_allocate")
	without(has("_initialize"), "_start")
	without(!has("_initialize"), "main")
	without(!has("_initialize") || has("main"), "__main_void")
	return want
}

// HostCalls gives the names of all functions that Envoy offers to modules of any
// ABI version and that it lets be withheld from one (capability restriction), sorted.
func HostCalls() []string {
	all := map[string]signature{}
	read(all, "proxy_", proxyFunctions+proxyFunctions010+proxyFunctions021)
	read(all, "", wasiFunctions)
	return slices.Sorted(maps.Keys(all))
}

// Callbacks gives the names of all functions of a module that Envoy calls and that it
// can be told not to, sorted.
func Callbacks() []string {
	all := map[string]signature{}
	read(all, "", callbacks+callbacks020)
	delete(all, "malloc")
	delete(all, "proxy_on_memory_allocate")
	return slices.Sorted(maps.Keys(all))
}
