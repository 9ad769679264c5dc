package e2e

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// canaries are texts that must be found nowhere, in whatever form they may have
// taken. They are random, so that they are nowhere by chance.
type canaries struct {
	count int
	// by has the forms by their first two bytes.
	by [1 << 16][]form
}

// form is what to look for.
type form struct {
	of, how string
	bytes   []byte
}

func (f form) String() string { return f.of + ", " + f.how }

// mark makes a text of small letters and digits, which all ways of quoting leave
// as it is. It is looked for by its halves, as a text that is cut shows too much.
func (c *canaries) mark(of string) string {
	m := strings.ToLower(rand.Text())[:24]
	for i, half := range []string{m[:12], m[12:]} {
		c.text(fmt.Sprintf("%s, half %d", of, i+1), half)
	}
	return m
}

func (c *canaries) text(of, s string) {
	c.add(of, "as it is", s)
	c.add(of, "in capitals", strings.ToUpper(s))
	c.add(of, "in hex", hex.EncodeToString([]byte(s)))
	c.add(of, "in hex capitals", strings.ToUpper(hex.EncodeToString([]byte(s))))
	c.add(of, "with percents", percents(s))
	for i := range 3 {
		once := within64(s, i)
		c.add(of, fmt.Sprint("in base64 at ", i), once)
		for j := range 3 {
			c.add(of, fmt.Sprintf("in base64 at %d in base64 at %d", i, j), within64(once, j))
		}
	}
}

// sum has the hash of a text looked for, from which a short one can be guessed.
func (c *canaries) sum(of, text string) {
	sum := sha256.Sum256([]byte(text))
	c.add(of, "hashed", string(sum[:]))
	c.add(of, "hashed in hex", hex.EncodeToString(sum[:]))
	c.add(of, "hashed in base64", base64.RawStdEncoding.EncodeToString(sum[:]))
	c.add(of, "hashed in base64 of URLs", base64.RawURLEncoding.EncodeToString(sum[:]))
}

func (c *canaries) add(of, how, s string) {
	at := start2([]byte(s))
	c.by[at] = append(c.by[at], form{of, how, []byte(s)})
	c.count++
}

func start2(b []byte) int { return int(b[0])<<8 | int(b[1]) }

// percents escapes every byte.
func percents(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		fmt.Fprintf(&b, "%%%02X", c)
	}
	return b.String()
}

// within64 is what base64 of any text has in it, when s is in that text behind a
// multiple of three bytes and as many as before says. For letters and digits it
// is the same in all kinds of base64.
func within64(s string, before int) string {
	coded := base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat("\x00", before) + s))
	return coded[(before*8+5)/6 : (before+len(s))*8/6]
}

// trace is a form that was found.
type trace struct {
	form   form
	around string
}

func (s trace) String() string { return fmt.Sprintf("%s: %q", s.form, s.around) }

// find looks for all forms in b and in what b is packed of.
func (c *canaries) find(b []byte) (found []trace) {
	for i := 0; i+1 < len(b); i++ {
		for _, f := range c.by[start2(b[i:])] {
			if bytes.HasPrefix(b[i:], f.bytes) {
				found = append(found, trace{f, string(b[max(0, i-80):min(len(b), i+len(f.bytes)+40)])})
			}
		}
	}
	if inner := unpacked(b); inner != nil {
		found = append(found, c.find(inner)...)
	}
	return found
}

// all is one text with every form in it.
func (c *canaries) all() []byte {
	var out []byte
	for _, forms := range c.by {
		for _, f := range forms {
			out = append(append(out, f.bytes...), 0)
		}
	}
	return out
}

// unpacked gives what gzip or zstd packed, as far as it can be read.
func unpacked(b []byte) []byte {
	var r io.Reader
	switch {
	case bytes.HasPrefix(b, []byte("\x1f\x8b")):
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			return nil
		}
		r = z
	case bytes.HasPrefix(b, []byte("\x28\xb5\x2f\xfd")):
		z, err := zstd.NewReader(bytes.NewReader(b))
		if err != nil {
			return nil
		}
		defer z.Close()
		r = z
	default:
		return nil
	}
	out, _ := io.ReadAll(io.LimitReader(r, 64<<20)) // what can be read counts
	return out
}

// files reads all files below a directory; those that go meanwhile are no matter.
func files(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		out[name+" (its name)"] = []byte(name)
		if !d.Type().IsRegular() {
			return nil
		}
		content, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			return nil
		}
		out[name] = content
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A search that finds nothing proves nothing unless it would find something.
func TestCanarySearch(t *testing.T) {
	t.Parallel()
	c := &canaries{}
	m := c.mark("the mark")
	c.sum("the mark", m)
	user := "somebody"
	pair := base64.StdEncoding.EncodeToString([]byte(user + ":" + m))
	config := fmt.Sprintf(`{"auths":{"registry.example":{"username":%q,"auth":%q}}}`, user, pair)
	packed := func(to func(io.Writer) io.WriteCloser) string {
		var b bytes.Buffer
		w := to(&b)
		if _, err := w.Write([]byte("so " + m)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	hidden := map[string]string{
		"as it is":        "x" + m + "x",
		"cut short":       m[:15],
		"without a start": m[9:],
		"base64":          base64.StdEncoding.EncodeToString([]byte(m)),
		"base64 of URLs":  base64.RawURLEncoding.EncodeToString([]byte("\xff" + m)),
		"a pair":          pair,
		"a config":        base64.StdEncoding.EncodeToString([]byte(config)),
		"hex":             hex.EncodeToString([]byte(config + m)),
		"percents":        percents(m),
		"hashed":          fmt.Sprintf("%x", sha256.Sum256([]byte(m))),
		"gzip":            packed(func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) }),
		"zstd":            packed(func(w io.Writer) io.WriteCloser { z, _ := zstd.NewWriter(w); return z }),
	}
	dir := t.TempDir()
	for name, text := range hidden {
		for i := range 4 { // behind any number of bytes
			if strings.HasSuffix(name, "z") || strings.HasPrefix(name, "zs") {
				i = 0
			}
			if len(c.find([]byte(strings.Repeat(" ", i)+text))) == 0 {
				t.Errorf("%s is not found behind %d bytes", name, i)
			}
		}
		if err := os.MkdirAll(filepath.Join(dir, "a", "b"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "a", "b", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	seen := 0
	for _, content := range files(t, dir) {
		if len(c.find(content)) > 0 {
			seen++
		}
	}
	if seen != len(hidden) {
		t.Errorf("%d files of %d are found", seen, len(hidden))
	}
	if got := c.find(c.all()); len(unique(got)) != c.count {
		t.Errorf("%d forms of %d are found", len(unique(got)), c.count)
	}
	if got := c.find([]byte(strings.ToLower(rand.Text()) + user)); len(got) > 0 {
		t.Errorf("found where it is not: %v", got)
	}
}

// unique are the forms that were found.
func unique(found []trace) []string {
	var out []string
	for _, s := range found {
		out = append(out, s.form.String())
	}
	slices.Sort(out)
	return slices.Compact(out)
}
