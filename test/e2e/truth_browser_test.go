package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// browser looks at the dashboard's matrix: once, or as its script does that follows.
type browser struct {
	url string // of the dashboard

	mu     sync.Mutex
	stream bool      // is open
	live   bool      // the page says that it follows
	behind time.Time // since when there is something newer; zero: there is not
	page   look
	shows  string // the page's version
	told   string // the newest version that the server told
	more   chan struct{}
}

// mayBeBehind is for how long the page says that it follows, though there is something
// newer.
const mayBeBehind = 500 * time.Millisecond

func newBrowser(url string) *browser { return &browser{url: url, more: make(chan struct{}, 1)} }

// open gives what the page claims that is asked for now.
func (b *browser) open(ctx context.Context) (look, bool) {
	l, _, err := b.get(ctx)
	return l, err == nil
}

// shown is what a page shows that follows, at this moment; false: it says itself that it
// does not follow, or is not there yet.
func (b *browser) shown() (look, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.page
	l.asked = time.Now()
	l.told = l.asked
	if !b.behind.IsZero() && l.asked.Sub(b.behind) > mayBeBehind {
		b.live = false
	}
	return l, b.live && l.claims != nil
}

// follow does what the page's script does, until ctx ends: it asks for the page again
// when the stream tells of a version that is not shown.
func (b *browser) follow(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for ctx.Err() == nil {
			b.listen(ctx)
			b.lost()
			pause(ctx, 300*time.Millisecond)
		}
	})
	for {
		select {
		case <-ctx.Done():
			return
		case <-b.more:
		}
		for again := true; again && ctx.Err() == nil; {
			l, version, err := b.get(ctx)
			if err != nil {
				pause(ctx, time.Second)
				continue
			}
			again = b.adopt(l, version)
		}
	}
}

// listen takes in one stream of events, until it ends.
func (b *browser) listen(ctx context.Context) {
	body, err := openPage(ctx, b.url+"live")
	if err != nil {
		return
	}
	defer body.Close()
	lines := bufio.NewScanner(body)
	for lines.Scan() {
		if version, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			b.hears(version)
		}
	}
}

// hears takes in a version that was told, and has the page asked for when it is another.
func (b *browser) hears(version string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stream, b.told = true, version
	if version == b.shows {
		b.live, b.behind = true, time.Time{}
		return
	}
	if b.behind.IsZero() {
		b.behind = time.Now()
	}
	select {
	case b.more <- struct{}{}:
	default:
	}
}

// lost takes in that the stream has ended.
func (b *browser) lost() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stream, b.live, b.behind = false, false, time.Time{}
}

// adopt shows a page; again: there is a newer one by now.
func (b *browser) adopt(l look, version string) (again bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.page, b.shows = l, version
	b.live, b.behind = b.stream, time.Time{}
	if again = b.stream && b.told != version; again {
		b.behind = time.Now()
	}
	return again
}

func (b *browser) get(ctx context.Context) (l look, version string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	asked := time.Now()
	body, err := openPage(ctx, b.url+"matrix")
	if err != nil {
		return l, "", err
	}
	defer body.Close()
	text, err := io.ReadAll(body)
	if err != nil {
		return l, "", err
	}
	l, version = readMatrix(string(text))
	l.asked, l.told = asked, time.Now()
	return l, version, nil
}

func openPage(ctx context.Context, url string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	return resp.Body, nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

var (
	matrixVersion = regexp.MustCompile(`data-version="([^"]+)"`)
	matrixCell    = regexp.MustCompile(`<td class="c-([a-z]+)" title="edge/([a-z]+) on edge/([a-z]+): ([^"]*)">`)
	matrixInForce = regexp.MustCompile(`^(?:in force|other release|faulting), release ([0-9a-f]{12})|^[a-z ]+, with release ([0-9a-f]{12}) in force`)
	matrixCount   = regexp.MustCompile(`>In force <span class="n">([0-9]+)<`)
)

// readMatrix reads from the page which release it claims in force of which plugin on
// which proxy.
func readMatrix(page string) (l look, version string) {
	l.claims = map[[2]string]string{}
	if m := matrixVersion.FindStringSubmatch(page); m != nil {
		version = m[1]
	}
	green := 0
	for _, cell := range matrixCell.FindAllStringSubmatch(page, -1) {
		if cell[1] == "force" {
			green++
		}
		if m := matrixInForce.FindStringSubmatch(cell[4]); m != nil {
			l.claims[[2]string{cell[3], cell[2]}] = m[1] + m[2]
		} else if cell[1] == "force" {
			l.wrong = "in force without a release: " + cell[4]
		}
	}
	if m := matrixCount.FindStringSubmatch(page); m == nil || m[1] != strconv.Itoa(green) {
		l.wrong = fmt.Sprintf("the legend counts %q in force, and %d cells say so", m, green)
	}
	return l, version
}

// What the matrix shows is read as people read it.
func TestReadMatrix(t *testing.T) {
	t.Parallel()
	const legend = `<html data-version="v-7">>In force <span class="n">1</span>`
	cell := func(class, plugin, says string) string {
		return `<td class="c-` + class + `" title="edge/` + plugin + ` on edge/a: ` + says + `"><b>`
	}
	l, version := readMatrix(legend + cell("force", "p", "in force, release 00000000000a") +
		cell("rejected", "q", "rejected, with release 00000000000b in force; EnvoyRejected: no") +
		cell("failed", "r", "failed, last with release 00000000000c; EnvoyDown: it is down") +
		cell("away", "s", "away, last with release 00000000000d"))
	want := map[[2]string]string{{"a", "p"}: "00000000000a", {"a", "q"}: "00000000000b"}
	if fmt.Sprint(l.claims) != fmt.Sprint(want) || l.wrong != "" || version != "v-7" {
		t.Errorf("claims %v, wrong %q, version %q", l.claims, l.wrong, version)
	}
	if l, _ = readMatrix(legend + cell("way", "p", "on its way")); l.wrong == "" {
		t.Error("a legend that counts wrong is not found out")
	}
}
