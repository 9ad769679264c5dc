//go:build linux && machine

package machine_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/machine"
)

// Machines of a network reach each other and what the test serves, and nothing else; they
// have their addresses after a loss of power, too.
func TestNetwork(t *testing.T) {
	t.Parallel()
	net := machine.NewNetwork(t)
	a, b := machine.Start(t, machine.Config{Name: "a"}), machine.Start(t, machine.Config{Name: "b"})
	net.Connect(a, "10.0.0.1")
	net.Connect(b, "10.0.0.2")
	lis, err := net.Listen("80")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	go func() { _ = http.Serve(lis, http.NotFoundHandler()) }() // until it is closed
	a.Must("printf '[Service]\\nExecStart=/usr/bin/python3 -m http.server 80 --directory /var/lib/web\\n[Install]\\nWantedBy=multi-user.target\\n' >/etc/systemd/system/web.service; mkdir /var/lib/web; echo word >/var/lib/web/word; systemctl enable --now web")
	a.Reboot()
	for command, want := range map[string]string{
		"for i in $(seq 100); do curl -fsS http://10.0.0.1/word && exit; sleep 0.1; done": "word",
		"curl -s -o /dev/null -w '%{http_code}' http://" + machine.Gateway:                "404",
		"ls /sys/class/net; ip route show default":                                        "eth0\nlo",
	} {
		if got := strings.TrimSpace(b.Must(command)); !strings.HasSuffix(got, want) {
			t.Errorf("%s: %q, want %q", command, got, want)
		}
	}
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: net.Dial, DisableKeepAlives: true}}
	resp, err := client.Get("http://10.0.0.1/word")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "word\n" {
		t.Errorf("the test is told %q, %v", body, err)
	}
}
