package main

// fault is a row of the table.
type fault struct {
	number int
	what   string
	// open is why there may be no test: what the fault needs that is not built.
	open string
	// remark says where the design answers differently from what one may expect,
	// or what of the row is still to come.
	remark string
}

// Reasons for a row to be open.
const (
	later = "later"
)

// faults are all rows. Gaps in the numbering stay: a number never changes.
var faults = []fault{
	{number: 1, what: "the agent is killed while idle"},
	{number: 2, what: "killed in the middle of writing a module"},
	{number: 3, what: "killed between write, sync, rename and directory sync", remark: "each file at every call; the whole agent at each rename, and at the first calls of each thread"},
	{number: 4, what: "agent killed after it sent, before the ACK is on disk"},
	{number: 5, what: "control plane killed at random, in mid-push", remark: "one replica; make e2e-kube kills leaders of three"},
	{number: 6, what: "control plane killed while it writes status"},
	{number: 7, what: "Envoy killed with registry and control plane down"},
	{number: 8, what: "the agent stands still and goes on", remark: "for a minute with make faults, else for as long as updates and a new control plane take"},
	{number: 9, what: "asked to end during a download", remark: "what was half downloaded is dropped and fetched anew"},
	{number: 11, what: "no file descriptors left"},
	{number: 12, what: "two agents on one directory"},
	{number: 14, what: "disk full in mid-write"},
	{number: 15, what: "the disk fails at sync, close or rename"},
	{number: 16, what: "a stored module cannot be read"},
	{number: 17, what: "a bit of a stored module flips"},
	{number: 18, what: "a stored module is deleted"},
	{number: 19, what: "the directory cannot be written", remark: "shown for the store and the lock, on a read-only mount; not for an agent as a whole"},
	{number: 20, what: "power loss"},
	{number: 21, what: "no inodes left"},
	{number: 22, what: "the store is full of what is in use"},
	{number: 23, what: "trimming races with use"},
	{number: 25, what: "registry answers 429 with Retry-After"},
	{number: 26, what: "registry answers 500, 502, 503 for long", remark: "for three tries, not ten minutes"},
	{number: 27, what: "a body that trickles"},
	{number: 28, what: "connection reset in mid-body"},
	{number: 29, what: "a body shorter than was said"},
	{number: 31, what: "bytes that are not what their digest says"},
	{number: 32, what: "a digest header that disagrees with the body"},
	{number: 33, what: "redirects: loops, to plain http, to metadata, to other hosts"},
	{number: 34, what: "a token expires in mid-pull", remark: "it expires between two pulls"},
	{number: 35, what: "a credential is revoked, its module is cached", remark: "what runs goes on"},
	{number: 36, what: "wrong CA, expired certificate, wrong name, plain text on a TLS port"},
	{number: 38, what: "the registry is away for long", remark: "away for good; no clock is moved"},
	{number: 39, what: "a tag moves during a rollout"},
	{number: 40, what: "a digest is deleted at the registry"},
	{number: 41, what: "a mirror serves junk"},
	{number: 42, what: "DNS fails, or changes to an internal address", remark: "loopback and private networks are allowed unless they are denied"},
	{number: 43, what: "the clock jumps", remark: "no test sets the clock: shown is that no wait goes by it, and that records of a wrong one do no harm; certificates go by it"},
	{number: 45, what: "the API server restarts"},
	{number: 46, what: "watches too old, compaction"},
	{number: 47, what: "no API server when the control plane starts", remark: "agents keep what they have; a new one waits"},
	{number: 48, what: "etcd down, slow, without quorum"},
	{number: 49, what: "one plugin edited without pause", remark: "an agent is sent ten versions a second once an allowance of a hundred is used up"},
	{number: 50, what: "10,000 resources appear at once"},
	{number: 51, what: "a resource that was never admitted"},
	{number: 53, what: "a replica cut off from the API server"},
	{number: 54, what: "two leaders for a while"},
	{number: 55, what: "the right to read secrets is withdrawn"},
	{number: 56, what: "a secret is rotated"},
	{number: 57, what: "a plugin is deleted while its module downloads"},
	{number: 58, what: "five updates during one download", remark: "one download; the version it was begun for may be in force for a moment before the last"},
	{number: 59, what: "a plugin is removed under load"},
	{number: 61, what: "Envoy refuses a version"},
	{number: 62, what: "a thousand agents' Envoys refuse"},
	{number: 63, what: "one bad plugin among many in one push"},
	{number: 64, what: "a stale nonce carries a change of subscription", remark: "shown for the stream to Envoy"},
	{number: 65, what: "messages over the limit, reset streams"},
	{number: 66, what: "Envoy reads slowly", remark: "shown for the stream to agents"},
	{number: 67, what: "no control plane when the node boots"},
	{number: 68, what: "10,000 agents reconnect at once", remark: "memory is that of both sides together"},
	{number: 69, what: "some agents never read"},
	{number: 70, what: "a module refuses its configuration"},
	{number: 72, what: "a module loops", remark: "when it starts or is configured; a loop per request is for staged rollouts to see"},
	{number: 73, what: "a module takes memory without end", remark: "when it starts or is configured"},
	{number: 74, what: "the vetting child crashes or hangs"},
	{number: 75, what: "two plugins of one module, one traps"},
	{number: 77, what: "random faults for a day", remark: "for seconds here; make soak takes a day"},
	{number: 78, what: "older and newer versions mixed, unknown formats on disk", remark: "files and messages recorded from an older build, and such as say more; older programs run where -older names them, else the same build stands for them"},
}
