package attach

import (
	"slices"
	"strings"

	"chandler.dev/chandler"
)

// Listener is one of the user's, with its places for plugins.
type Listener struct {
	Name string
	// Address is "host:port", or the path of a socket.
	Address string
	Mode    chandler.Mode
	Port    uint32
	// Slots are the shared ones in it, Sites where slots of one plugin can enter, each
	// once and in the order of its chains.
	Slots []Slot
	Sites []Site
	// Counted are its connection managers, as Envoy counts what they do.
	Counted []Counted
}

// Counted is what a connection manager is known by in Envoy's statistics.
type Counted struct {
	// Stats begins their names, behind "http.".
	Stats string
	Mode  chandler.Mode
	Port  uint32
}

// InOrder gives the slots of a listener in the order in which traffic meets them:
// those of its chains' network filters, then those of its HTTP filters. own are the
// slots of one plugin that stand in the listeners, in their order there.
func (l *Listener) InOrder(own []Slot) []Slot {
	var list []Slot
	for _, network := range []bool{true, false} {
		for _, site := range l.Sites {
			if site.Network != network {
				continue
			}
			for _, s := range own {
				if (Site{s.Mode, s.Port, s.Network}) == site {
					list = append(list, s)
				}
			}
		}
	}
	shared := slices.Clone(l.Slots)
	slices.SortFunc(shared, Slot.Compare)
	return append(list, shared...)
}

// enterTree begins with a listener.
func (e *editor) enterTree(l item, mode chandler.Mode, port uint32) error {
	name, err := scalarText(l.Node, l.path, "name")
	if err != nil {
		return err
	}
	address, err := fullAddress(l)
	e.enter(Listener{Name: name, Address: address, Mode: mode, Port: port})
	return err
}

// fullAddress is a listener's address for people; empty when it is of a kind that is
// not known here.
func fullAddress(l item) (string, error) {
	socket, path, err := socketAddress(l)
	if err != nil {
		return "", err
	}
	if socket != nil {
		host, err := scalarText(socket, path, "address")
		if err != nil {
			return "", err
		}
		port, err := scalarText(socket, path, "port_value")
		return hostPort(host, port), err
	}
	path = sub(l.path, "address")
	address, err := message(l.Node, l.path, "address")
	if err != nil || address == nil {
		return "", err
	}
	pipe, err := message(address, path, "pipe")
	if err != nil || pipe == nil {
		return "", err
	}
	return scalarText(pipe, sub(path, "pipe"), "path")
}

func hostPort(host, port string) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + port
}

// countedTree notes under which name Envoy counts what a connection manager does.
func (e *editor) countedTree(hcm item, mode chandler.Mode, port uint32) error {
	prefix, err := scalarText(hcm.Node, hcm.path, "stat_prefix")
	e.counted(prefix, mode, port)
	return err
}
