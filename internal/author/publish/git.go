package publish

import (
	"context"
	"io"
	"net/url"
	"os/exec"
	"strings"
	"time"
)

// gitPatience is how long git may take to answer: it looks at all files of a
// checkout.
const gitPatience = 10 * time.Second

// checkout asks git where a folder's code is from and which of it that is. Without
// git, or outside of a checkout, both are empty. Files that git knows and that were
// changed since make a revision of their own, which nobody else has: it says so.
func checkout(ctx context.Context, folder string) (source, revision string) {
	ctx, cancel := context.WithTimeout(ctx, gitPatience)
	defer cancel()
	revision, ok := git(ctx, folder, "rev-parse", "HEAD")
	if !ok {
		return "", ""
	}
	if changed, ok := git(ctx, folder, "status", "--porcelain", "--untracked-files=no"); ok && changed != "" {
		revision += "-dirty"
	}
	if remote, ok := git(ctx, folder, "remote", "get-url", "origin"); ok {
		source = sourceURL(remote)
	}
	return source, revision
}

// git runs git in a folder. What the folder's own configuration would have it start
// is not started.
func git(ctx context.Context, folder string, args ...string) (string, bool) {
	cmd := exec.CommandContext(ctx, "git", append([]string{"-C", folder, "-c", "core.fsmonitor=false", "-c", "core.hooksPath=", "--no-optional-locks"}, args...)...)
	cmd.WaitDelay = time.Second
	var out strings.Builder
	cmd.Stdout = &limited{w: &out, left: 64 << 10}
	if cmd.Run() != nil {
		return "", false
	}
	return strings.TrimSpace(out.String()), true
}

// limited writes so many bytes and drops the rest.
type limited struct {
	w    io.Writer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	l.left -= n
	if _, err := l.w.Write(p[:n]); err != nil {
		return 0, err
	}
	return len(p), nil
}

// sourceURL is a remote fit to be published: a URL without user and password. A
// remote that is a folder of this machine is none.
func sourceURL(remote string) string {
	if host, path, ok := strings.Cut(remote, ":"); ok && !strings.Contains(host, "/") && !strings.HasPrefix(path, "//") && path != "" {
		_, host, _ = cutLast(host, "@")
		remote = "ssh://" + host + "/" + strings.TrimPrefix(path, "/")
	}
	u, err := url.Parse(remote)
	if err != nil || u.Host == "" || u.Scheme == "" || u.Scheme == "file" {
		return ""
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return u.String()
}

// cutLast is strings.Cut at the last sep; without one, all is after.
func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return "", s, false
}
