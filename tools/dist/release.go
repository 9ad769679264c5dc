package main

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// release is what is built: from it alone follows what the files are called and what
// stands in them beside the programs.
type release struct {
	Version string // as the programs say it
	Commit  string
	// Time is the commit's, and that of all files.
	Time time.Time
}

var (
	// What may stand in file names, tags of images and packages alike.
	isVersion  = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z.-]{0,127}$`)
	isSemver   = regexp.MustCompile(`^(\d+)\.(\d+)\.(\d+)(-[0-9A-Za-z.-]+)?$`)
	isDescribe = regexp.MustCompile(`^(\d+)\.(\d+)\.(\d+)-(\d+)-(g[0-9a-f]+)(-dirty)?$`)
)

// newRelease takes a version such as "git describe" gives, with or without a v before it.
func newRelease(version, commit string, at time.Time) (release, error) {
	r := release{strings.TrimPrefix(version, "v"), commit, at.UTC()}
	if !isVersion.MatchString(r.Version) {
		return r, fmt.Errorf("version %q: letters, digits, dots and hyphens are what it may have", version)
	}
	return r, nil
}

// Semver is a version that sorts, for packages and the chart: what comes after a tag is
// later than it and before the next one, and what has no tag is older than all that have.
func (r release) Semver() string {
	if m := isDescribe.FindStringSubmatch(r.Version); m != nil {
		patch, _ := strconv.Atoi(m[3]) // digits
		return fmt.Sprintf("%s.%s.%d-0.%s.%s%s", m[1], m[2], patch+1, m[4], m[5], strings.ReplaceAll(m[6], "-", "."))
	}
	if isSemver.MatchString(r.Version) {
		return r.Version
	}
	return fmt.Sprintf("0.0.0-%s.g%s", r.Time.Format("20060102"), strings.ReplaceAll(r.Version, "-", "."))
}

// platform is an operating system and an architecture, as Go names them.
type platform struct{ OS, Arch string }

func (p platform) String() string { return p.OS + "-" + p.Arch }

func parsePlatforms(text string) ([]platform, error) {
	var all []platform
	for _, word := range strings.Fields(text) {
		system, arch, ok := strings.Cut(word, "/")
		if !ok || system == "" || arch == "" {
			return nil, fmt.Errorf("platform %q is not OS/ARCH", word)
		}
		all = append(all, platform{system, arch})
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no platform is named")
	}
	return all, nil
}
