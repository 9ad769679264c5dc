//go:build browser

package dashboard

import (
	"context"
	"flag"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/control"
)

// The tests in a real browser. They need Debian's chromium, or another of its family,
// which tools/chromium.sh installs; without one they fail.

var shots = flag.String("screenshots", "", "folder to keep screenshots in")

// browse opens a page of a browser, and tells at the test's end what was wrong in it:
// words on the console, exceptions, requests to anywhere else than the server.
func browse(t *testing.T, cfg Config) (ctx context.Context, origin string) {
	t.Helper()
	srv := httptest.NewServer(New(cfg))
	t.Cleanup(srv.Close)
	var path string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if p, err := exec.LookPath(name); err == nil {
			path = p
			break
		}
	}
	if path == "" {
		t.Fatal("there is no chromium: run tools/chromium.sh")
	}
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.WindowSize(1400, 1000),
		chromedp.WSURLReadTimeout(time.Minute), chromedp.UserDataDir(t.TempDir()))
	alloc, stop := chromedp.NewExecAllocator(context.Background(), opts...)
	ctx, cancel := chromedp.NewContext(alloc)
	w := &watched{origin: srv.URL}
	t.Cleanup(func() {
		if err := chromedp.Cancel(ctx); err != nil {
			t.Logf("the browser did not end by itself: %v", err)
		}
		cancel()
		stop()
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, words := range w.wrong {
			t.Error(words)
		}
		if w.requests == 0 {
			t.Error("no request was seen")
		}
	})
	err := chromedp.Listen(ctx, w.hear)
	if err == nil {
		_, err = chromedp.Call(ctx, network.Enable, network.EnableParams{})
	}
	if err == nil {
		_, err = chromedp.Call(ctx, log.Enable, cdp.Empty{})
	}
	if err != nil {
		t.Fatal(err)
	}
	return ctx, srv.URL
}

type watched struct {
	origin   string
	mu       sync.Mutex
	wrong    []string
	requests int
}

func (w *watched) hear(event any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch e := event.(type) {
	case *runtime.EventConsoleAPICalled:
		w.wrong = append(w.wrong, fmt.Sprintf("console.%s: %s", e.Type, jsonOf(e.Args)))
	case *runtime.EventExceptionThrown:
		w.wrong = append(w.wrong, fmt.Sprintf("exception: %+v", e.ExceptionDetails))
	case *log.EventEntryAdded:
		w.wrong = append(w.wrong, fmt.Sprintf("console: %s: %s %s", e.Entry.Level, e.Entry.Text, e.Entry.URL))
	case *network.EventRequestWillBeSent:
		w.requests++
		if url := e.Request.URL; !strings.HasPrefix(url, w.origin+"/") {
			w.wrong = append(w.wrong, "a request to another origin: "+url)
		}
	}
}

// patience bounds what is done or waited for in the browser.
const patience = time.Minute

// run does things in the browser, in order.
func run(t *testing.T, ctx context.Context, steps ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		t.Fatal(err)
	}
}

// until waits for an expression of the page to be true.
func until(t *testing.T, ctx context.Context, expression string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if _, err := chromedp.Run(ctx, chromedp.Poll[bool]("Boolean("+expression+")", chromedp.WithPollingTimeout(20*time.Second), chromedp.WithPollingInterval(10*time.Millisecond))); err != nil {
		t.Fatalf("%s: %v", expression, err)
	}
}

// ask gives what an expression of the page is.
func ask[T any](t *testing.T, ctx context.Context, expression string) T {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		t.Fatalf("%.80s: %v", expression, err)
	}
	return v
}

// call calls a command of the browser's protocol.
func call[P, R any](t *testing.T, ctx context.Context, command cdp.Command[P, R], params P) {
	t.Helper()
	if _, err := chromedp.Call(ctx, command, params); err != nil {
		t.Fatal(err)
	}
}

const isLive = `document.getElementById("following").textContent === "live"`

// shoot keeps a screenshot of the whole page, if they are asked for.
func shoot(t *testing.T, ctx context.Context, name string) {
	t.Helper()
	if *shots == "" {
		return
	}
	picture, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(*shots, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(*shots, name+".png"), picture, 0o644); err != nil {
		t.Fatal(err)
	}
}

// sound gives what of a page is not as people who do not see it, or use no pointer,
// need it.
const sound = `(() => {
  const wrong = [];
  const say = (what, e) => wrong.push(what + (e ? ": " + e.outerHTML.slice(0, 160) : ""));
  if (!document.documentElement.lang) say("no language");
  if (!document.title) say("no title");
  for (const one of ["main", "header", "nav", "footer", "h1"])
    if (document.querySelectorAll("body " + one).length < 1) say("no " + one);
  if (document.querySelectorAll("h1").length !== 1 || document.querySelectorAll("main").length !== 1) say("not one h1 and main");
  let level = 0;
  for (const h of document.querySelectorAll("h1,h2,h3,h4,h5,h6")) {
    const l = Number(h.nodeName[1]);
    if (l > level + 1) say("a heading leaves a level out", h);
    if (!h.textContent.trim()) say("an empty heading", h);
    level = l;
  }
  const ids = new Set();
  for (const e of document.querySelectorAll("[id]")) { if (ids.has(e.id)) say("the id " + e.id + " twice"); ids.add(e.id); }
  for (const e of document.querySelectorAll("input:not([type=hidden]),select,textarea"))
    if (!e.labels || !e.labels.length || !e.labels[0].textContent.trim()) say("no label", e);
  for (const e of document.querySelectorAll("a,button"))
    if (!(e.textContent.trim() || e.getAttribute("aria-label"))) say("no words", e);
  for (const e of document.querySelectorAll("a")) if (!e.getAttribute("href")) say("leads nowhere", e);
  for (const e of document.querySelectorAll("th")) if (!e.scope) say("no scope", e);
  for (const e of document.querySelectorAll("thead th,tbody th")) if (!e.textContent.trim()) say("an empty header", e);
  for (const e of document.querySelectorAll("svg"))
    if (e.getAttribute("aria-hidden") !== "true" && !(e.getAttribute("role") === "img" && e.getAttribute("aria-label"))) say("a picture without words", e);
  for (const e of document.querySelectorAll("[aria-labelledby]")) if (!document.getElementById(e.getAttribute("aria-labelledby"))) say("no such label", e);
  for (const e of document.querySelectorAll("[role=region]")) if (!e.getAttribute("aria-label") || e.tabIndex !== 0) say("a region without a name or not to be reached", e);
  for (const e of document.querySelectorAll("[style],script:not([src]),style,[onclick]")) say("within the page", e);
  if (!document.querySelector("[role=status]")) say("nothing is read out");
  if (document.documentElement.scrollWidth > document.documentElement.clientWidth) say("wider than the window: " + document.documentElement.scrollWidth);
  return wrong;
})()`

// TestBrowserPages: every page, light and dark, wide and narrow, is as it should be.
func TestBrowserPages(t *testing.T) {
	f := told(t, 12, 6)
	ctx, origin := browse(t, configOf(f, admin))
	for name, path := range pagesOf() {
		for _, scheme := range []string{"light", "dark"} {
			call(t, ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
			run(t, ctx, chromedp.EmulateViewport(1400, 1000), chromedp.Navigate(origin+Root+path), chromedp.WaitVisible("h1"))
			for _, words := range ask[[]string](t, ctx, sound) {
				t.Errorf("%s: %s", name, words)
			}
			if dark := ask[bool](t, ctx, `getComputedStyle(document.documentElement).backgroundColor === "rgb(21, 24, 27)"`); dark != (scheme == "dark") {
				t.Errorf("%s: dark is %t in a %s window", name, dark, scheme)
			}
			shoot(t, ctx, name+"-"+scheme)
		}
		run(t, ctx, chromedp.EmulateViewport(400, 800))
		if wide := ask[string](t, ctx, `document.documentElement.scrollWidth <= 400 ? "" :
			[...document.querySelectorAll("body *")].filter((e) => e.getBoundingClientRect().right > 400 && !e.closest(".scroll,pre")).map((e) => e.outerHTML.slice(0, 120)).join("\n") || "something of it"`); wide != "" {
			t.Errorf("%s: wider than a window of 400: %s", name, wide)
		}
		shoot(t, ctx, name+"-narrow")
	}
}

// TestBrowserKeyboard: the first key leads past the head, and what has the focus is to
// be seen.
func TestBrowserKeyboard(t *testing.T) {
	ctx, origin := browse(t, configOf(told(t, 12, 6), admin))
	run(t, ctx, chromedp.Navigate(origin+Root), chromedp.WaitVisible("h1"), chromedp.KeyEvent("\t"))
	if skip := ask[string](t, ctx, `document.activeElement.className + " " + (document.activeElement.getBoundingClientRect().left >= 0)`); skip != "skip true" {
		t.Errorf("the first key leads to %q", skip)
	}
	run(t, ctx, chromedp.KeyEvent("\r"), chromedp.KeyEvent("\t"))
	if !ask[bool](t, ctx, `document.getElementById("content").contains(document.activeElement)`) {
		t.Error("the skip link does not lead past the head")
	}
	for range 12 {
		run(t, ctx, chromedp.KeyEvent("\t"))
		if style := ask[string](t, ctx, `getComputedStyle(document.activeElement).outlineStyle + " " + getComputedStyle(document.activeElement).outlineWidth`); style != "solid 2px" {
			t.Errorf("the focus is not seen: %s", style)
		}
	}
}

// TestBrowserLive: what happens is seen without a hand, and takes nothing from who is
// about to do something.
func TestBrowserLive(t *testing.T) {
	f := told(t, 12, 6)
	ctx, origin := browse(t, configOf(f, admin))
	run(t, ctx, chromedp.Navigate(origin+Root), chromedp.WaitVisible("h1"))
	until(t, ctx, isLive)
	f.set(3, 2, chandler.StateRejected, "EnvoyRejected", "cannot parse its own configuration")
	until(t, ctx, `document.getElementById("p-WasmPlugin/istio-system/audit").textContent.includes("Failing")`)
	until(t, ctx, `document.getElementById("summary").textContent.includes("4 need a look")`)
	f.emit(chandler.Event{At: noon, Reason: chandler.EventPolicy, Message: "a new rule"})
	until(t, ctx, `document.querySelector(".events li").textContent.includes("a new rule")`)

	run(t, ctx, chromedp.Navigate(origin+Root+"matrix"), chromedp.WaitVisible("#grid"))
	until(t, ctx, isLive)
	run(t, ctx, chromedp.Evaluate[chromedp.Void](`window.same = true`), chromedp.SendKeys(`input[name="proxy"]`, "0002"))
	until(t, ctx, `document.querySelectorAll("#grid tbody tr:not(.group)").length === 1 && location.search === "?proxy=0002"`)
	f.set(3, 2, chandler.StateInForce, "", "")
	until(t, ctx, `!document.querySelector("#grid .c-rejected")`)
	if !ask[bool](t, ctx, `window.same && document.activeElement.name === "proxy" && document.activeElement.value === "0002"`) {
		t.Error("what was being typed is gone")
	}

	run(t, ctx, chromedp.Navigate(origin+Root+"plugins/WasmPlugin/istio-system/geo"), chromedp.WaitVisible("#imports"))
	until(t, ctx, isLive)
	run(t, ctx, chromedp.Click("#imports summary"))
	f.set(4, 7, chandler.StateFailed, "FetchFailed", "no route to the registry")
	until(t, ctx, `document.getElementById("failures").textContent.includes("no route to the registry")`)
	if !ask[bool](t, ctx, `document.getElementById("imports").open`) {
		t.Error("what was opened is shut")
	}
	shoot(t, ctx, "live")
}

// TestBrowserGates: a rollout's gates and buttons follow it.
func TestBrowserGates(t *testing.T) {
	f := told(t, 12, 6)
	ctx, origin := browse(t, configOf(f, admin))
	run(t, ctx, chromedp.Navigate(origin+Root+"rollouts/WasmPlugin/istio-system/auth"), chromedp.WaitVisible("#steps"))
	until(t, ctx, isLive)
	f.change(func() {
		r := &f.rollouts[0].Rollout
		r.State, r.Reason, r.Message = chandler.RolloutDegraded, "GateFailed", "5xx 12 % on the chosen proxies"
		r.Gates = []chandler.Measure{{Gate: chandler.GateServerError, Result: chandler.GateFailed, Chosen: .12, Others: .001, HasOthers: true, Limit: .01}}
	})
	until(t, ctx, `document.querySelector("#gates .g-failed") && document.querySelector("#steps .s-back") && document.getElementById("buttons").textContent.includes("Retry")`)
	if ask[bool](t, ctx, `document.getElementById("buttons").textContent.includes("Promote")`) {
		t.Error("a rollout that was taken back can be promoted")
	}
}

// TestBrowserSteers: a button asks first, and does what it says once.
func TestBrowserSteers(t *testing.T) {
	f := told(t, 12, 6)
	ctx, origin := browse(t, configOf(f, admin))
	run(t, ctx, chromedp.Navigate(origin+Root+"rollouts/WasmPlugin/istio-system/auth"), chromedp.WaitVisible("#steps"),
		chromedp.Click(`#buttons a[href$="/abort"]`), chromedp.WaitVisible("#why"), chromedp.Click("button.main.grave"))
	if !ask[bool](t, ctx, `document.querySelector("#why:invalid") !== null`) {
		t.Error("it can be aborted without a word")
	}
	shoot(t, ctx, "confirm")
	run(t, ctx, chromedp.SendKeys("#why", "the shop is slow"), chromedp.Click("button.main.grave"), chromedp.WaitVisible("#steps"))
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.orders) != 1 || f.orders[0] != (control.Steering{Key: f.objects[0].Key, Verb: control.Abort, By: "ada", Why: "the shop is slow"}) {
		t.Errorf("%+v", f.orders)
	}
}

// TestBrowserWithoutScript: everything is to be read, and filters work.
func TestBrowserWithoutScript(t *testing.T) {
	ctx, origin := browse(t, configOf(told(t, 1000, 20), admin))
	call(t, ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	run(t, ctx, chromedp.Navigate(origin+Root+"matrix"), chromedp.WaitVisible("#map"),
		chromedp.SetValue(`select[name="state"]`, "r"), chromedp.Click(`.filters button`), chromedp.WaitVisible(`.legend a[aria-current]`))
	found, err := chromedp.Run(ctx, chromedp.Text("#found"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(found, "1 plugin on 111 proxies, of 1,000") {
		t.Errorf("filtered: %s", found)
	}
	run(t, ctx, chromedp.Navigate(origin+Root+"matrix?view=table&page=10"), chromedp.WaitVisible("#grid"))
	if found, err = chromedp.Run(ctx, chromedp.Text("#pages")); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(found, "901–1,000 of 1,000") {
		t.Errorf("the last page: %s", found)
	}
	shoot(t, ctx, "without-script")
}

// TestBrowserAtSize: 1,000 proxies with 20 plugins are shown in less than a second, and
// a change in less than half of one.
func TestBrowserAtSize(t *testing.T) {
	f := told(t, 1000, 20)
	ctx, origin := browse(t, configOf(f, admin))
	run(t, ctx, chromedp.Navigate(origin+Root), chromedp.WaitVisible("h1")) // the browser's own start is not ours
	var showed []time.Duration
	for range 5 {
		began := time.Now()
		run(t, ctx, chromedp.Navigate(origin+Root+"matrix"))
		at := ask[float64](t, ctx, `new Promise((ok) => requestAnimationFrame(() => requestAnimationFrame(() => ok(Date.now()))))`)
		showed = append(showed, time.UnixMilli(int64(at)).Sub(began))
	}
	if n := ask[int](t, ctx, `[...document.querySelectorAll("svg.strip")].reduce((n, s) => n + s.dataset.marks.replaceAll("-", "").length, 0)`); n < 17_000 {
		t.Errorf("%d squares", n)
	}
	shoot(t, ctx, "size-map")
	until(t, ctx, isLive)
	var saw []time.Duration
	for i := range 10 {
		proxy := 10 + 9*i
		run(t, ctx, chromedp.Evaluate[chromedp.Void](fmt.Sprintf(`window.seen = new Promise((ok) => {
			const look = () => [...document.querySelectorAll("#m-WasmPlugin\\/istio-system\\/audit svg.strip")].map((s) => s.dataset.marks).join("")[%d] === "x";
			const o = new MutationObserver(() => { if (look()) { o.disconnect(); requestAnimationFrame(() => requestAnimationFrame(() => ok(Date.now()))); } });
			o.observe(document.getElementById("content"), {subtree: true, attributes: true, childList: true});
		}); 0`, proxy)))
		began := time.Now()
		f.set(3, proxy, chandler.StateFailed, "FetchFailed", "gone")
		saw = append(saw, time.UnixMilli(int64(ask[float64](t, ctx, `window.seen`))).Sub(began))
	}
	t.Logf("1,000 proxies x 20 plugins shown after %v; changes seen after %v", showed, saw)
	// More than half of them: where a machine stalls once, that is not the page's.
	slices.Sort(showed)
	if d := showed[len(showed)/2]; d > time.Second {
		t.Errorf("shown after %v", d)
	}
	slices.Sort(saw)
	if d := saw[len(saw)/2]; d > 500*time.Millisecond {
		t.Errorf("a change was seen after %v", d)
	}
}

// TestBrowserLongNames: names as long as they may be leave what is said of them in sight.
func TestBrowserLongNames(t *testing.T) {
	f := scene(2, 2)
	f.proxies[0].Name = strings.Repeat("n", 253)
	long := chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "istio-system", Name: strings.Repeat("long-", 50) + "one"}
	f.objects = append(f.objects, f.object(long))
	ctx, origin := browse(t, configOf(f, admin))
	for _, path := range []string{"", "proxies", "matrix", "matrix?view=map", "plugins/" + long.Kind + "/" + long.Namespace + "/" + long.Name} {
		run(t, ctx, chromedp.Navigate(origin+Root+path), chromedp.WaitVisible("h1"))
		second := ask[float64](t, ctx, `Math.max(...[...document.querySelectorAll("tbody th[scope=row] + td")].map((e) => e.getBoundingClientRect().left))`)
		if wide := ask[int](t, ctx, `document.documentElement.scrollWidth - document.documentElement.clientWidth`); second > 700 || wide > 0 {
			t.Errorf("%q: what is said beside a name begins at %v; %d wider than the window", path, second, wide)
		}
	}
	shoot(t, ctx, "long-names")
}

// TestBrowserHostile: names and words that are markup are text, in every page.
func TestBrowserHostile(t *testing.T) {
	f := hostile(t)
	ctx, origin := browse(t, configOf(f, admin))
	for _, path := range hostilePages(f) {
		run(t, ctx, chromedp.Navigate(origin+path), chromedp.WaitVisible("h1"))
		if ask[bool](t, ctx, `"stolen" in window || document.querySelector("main img, main script, main b[onclick]") !== null`) {
			t.Errorf("%s: markup of a stranger is taken for the page's own", path)
		}
	}
}
