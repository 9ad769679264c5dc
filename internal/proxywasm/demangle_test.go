package proxywasm

import "testing"

func TestDemangle(t *testing.T) {
	t.Parallel()
	for symbol, want := range map[string]string{
		"_ZN4absl6StrCatERKNS_8AlphaNumE": "absl::StrCat",
		"_Z3fooi":                         "foo",
		"_ZNK6google8protobuf7Message11DebugStringEv":                         "google::protobuf::Message::DebugString",
		"_ZNSt3__112basic_stringIcNS_11char_traitsIcEENS_9allocatorIcEEEC1Ev": "std::__1::basic_string",
		"_ZN4core9panicking5panic17h0123456789abcdefE":                        "core::panicking::panic",
		"_ZSt4move":         "std::move",
		"strlen":            "",
		"_Z":                "",
		"_ZN999999999999xE": "",
		"_ZNSt":             "",
	} {
		if got, ok := demangle(symbol); got != want || ok != (want != "") {
			t.Errorf("%s: %q, %v, want %q", symbol, got, ok, want)
		}
	}
}
