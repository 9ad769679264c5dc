package dashboard

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/access"
	"chandler.dev/chandler/internal/control"
)

const (
	// formLasts is how long a form may be sent after it was shown.
	formLasts = time.Hour
	maxForm   = 16 << 10
	maxWhy    = 500 // bytes of a reason
)

// confirmation is the page that asks whether something is really to be done.
type confirmation struct {
	*plugin
	Action  action
	Token   string
	Seen    string // how the rollout was, of which the form was made
	Problem string
	// Of undo: the releases that may be gone back to.
	History []past
	// Of what was filled in, when it has to be asked again.
	Why, Node, Labels, Release string
	NeedWhy                    bool
}

// confirm shows a form. It changes nothing.
func (d *dashboard) confirm(w http.ResponseWriter, r *http.Request) {
	v, p, act, ok := d.enterToSteer(w, r)
	if ok {
		d.ask(w, r, v, p, act, http.StatusOK, "")
	}
}

// enterToSteer finds the plugin of a form, and whether its viewer may steer it; false:
// it has been answered.
func (d *dashboard) enterToSteer(w http.ResponseWriter, r *http.Request) (*view, *plugin, action, bool) {
	v, ok := d.enter(w, r)
	if !ok {
		return nil, nil, action{}, false
	}
	p := v.byKey[v.key()]
	if p == nil || d.cfg.Rollouts == nil {
		d.wrong(w, r, http.StatusNotFound, "There is no such plugin, or you may not see it.")
		return nil, nil, action{}, false
	}
	may := v.sight.May(d.cfg.Steers, p.Namespace)
	switch viewer := v.sight.viewer; {
	case v.sight.Err() != nil:
		d.wrong(w, r, http.StatusServiceUnavailable, v.sight.Err().Error())
		return nil, nil, action{}, false
	case !may && !viewer.Known():
		d.turnAway(w, r, viewer)
		return nil, nil, action{}, false
	case !may:
		err := fmt.Errorf("%s may not %s in namespace %s", viewer.Name(), d.cfg.Steers, chandler.Quote(p.Namespace))
		d.cfg.Refused(r, d.cfg.Steers, err)
		d.wrong(w, r, http.StatusForbidden, err.Error())
		return nil, nil, action{}, false
	}
	all := actions(p)
	i := slices.IndexFunc(all, func(a action) bool { return a.Verb == v.path("verb") })
	if i < 0 {
		d.wrong(w, r, http.StatusConflict, "That makes no sense as the rollout is now.")
		return nil, nil, action{}, false
	}
	return v, p, all[i], true
}

// ask shows the form, once more with what was filled in when there is a problem.
func (d *dashboard) ask(w http.ResponseWriter, r *http.Request, v *view, p *plugin, act action, status int, problem string) {
	c := confirmation{
		plugin: p, Action: act, Problem: problem, Token: d.token(v.sight.viewer, r.URL.Path), Seen: seen(p),
		Why: r.PostForm.Get("why"), Node: r.PostForm.Get("node"), Labels: r.PostForm.Get("labels"), Release: r.PostForm.Get("release"),
		NeedWhy: act.Grave,
	}
	if act.Verb == undo {
		for _, h := range p.history() {
			if !h.Present && !slices.ContainsFunc(c.History, func(o past) bool { return o.Release == h.Release }) {
				c.History = append(c.History, h)
			}
		}
	}
	d.answer(w, r, status, "confirm", d.frameFor(v.sight.viewer, act.Word+" "+p.Name, c))
}

// readForm reads a form that a page of this server sent; false: it did not, which has
// been answered.
func (d *dashboard) readForm(w http.ResponseWriter, r *http.Request) bool {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	switch {
	case !access.SameOrigin(r.Host, r.Header.Get("Origin"), r.Header.Get("Sec-Fetch-Site")):
		d.wrong(w, r, http.StatusForbidden, "The form comes from a page of another server.")
	case r.ParseForm() != nil:
		d.wrong(w, r, http.StatusBadRequest, "The form cannot be read.")
	default:
		return true
	}
	return false
}

// steer does what a form says, once: the form must be this server's own, of the one
// who sends it, and about what they saw.
func (d *dashboard) steer(w http.ResponseWriter, r *http.Request) {
	if !d.readForm(w, r) {
		return
	}
	v, p, act, ok := d.enterToSteer(w, r)
	if !ok {
		return
	}
	why := chandler.Printable(r.PostForm.Get("why"), maxWhy)
	orders, problem := disablement(r.PostForm, why)
	switch {
	case !d.genuine(r.PostForm.Get("token"), v.sight.viewer, r.URL.Path):
		problem = "The form is too old, or not one of yours. Look again, and confirm once more."
	case r.PostForm.Get("seen") != seen(p):
		problem = "The rollout has moved on since you looked. Look again, and confirm once more."
	case act.Grave && why == "":
		problem = "Say why: others will want to know."
	}
	if problem != "" {
		d.ask(w, r, v, p, act, http.StatusConflict, problem)
		return
	}
	who := v.sight.viewer
	orders.By, orders.At = who.Name(), d.cfg.Now().UTC()
	var err error
	switch act.Verb {
	case disable:
		_, err = d.cfg.Rollouts.Disable(r.Context(), p.Key, orders)
	case enable:
		_, err = d.cfg.Rollouts.Enable(r.Context(), p.Key, orders)
	default:
		_, err = d.cfg.Rollouts.Steer(r.Context(), control.Steering{
			Key: p.Key, Verb: act.order, Release: r.PostForm.Get("release"), By: who.Name(), Why: why,
		})
	}
	log := d.cfg.Log.With("who", who.Name(), "from", who.From(), "does", act.Verb, "object", chandler.Printable(p.Kind+" "+p.Namespace+"/"+p.Name, 512), "why", why)
	if err != nil {
		log.Warn("a change failed", "error", err)
		d.ask(w, r, v, p, act, http.StatusConflict, says(err))
		return
	}
	log.Info("changed", "verb", d.cfg.Steers)
	http.Redirect(w, r, rolloutPath(p.Key), http.StatusSeeOther)
}

func says(err error) string {
	var p *chandler.Problem
	if errors.As(err, &p) {
		return p.Error()
	}
	return err.Error()
}

// disablement reads whom an order is about: "namespace/name", or labels.
func disablement(form url.Values, why string) (d chandler.Disablement, problem string) {
	d.Reason, d.Node = why, strings.TrimSpace(form.Get("node"))
	if labels := strings.TrimSpace(form.Get("labels")); labels != "" {
		d.Labels = map[string]string{}
		for part := range strings.SplitSeq(labels, ",") {
			key, value, ok := strings.Cut(strings.TrimSpace(part), "=")
			if !ok {
				return d, "Write labels as KEY=VALUE, with commas between."
			}
			d.Labels[key] = value
		}
	}
	if err := d.Check(); err != nil {
		return d, "That cannot be ordered: " + err.Error() + "."
	}
	return d, ""
}

// seen sums up what somebody sees of a rollout before they steer it.
func seen(p *plugin) string {
	r := p.Rollout
	if r == nil {
		return "none"
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %s %s %s %d %d %t %d", r.UID, r.State, r.From, r.To, r.Step, r.Generation, r.Pinned, len(r.Disabled)))
	return hex.EncodeToString(sum[:8])
}

// token is what a form of one viewer, at one address, shows; it is good for some time.
func (d *dashboard) token(who Viewer, path string) string {
	until := strconv.FormatInt(d.cfg.Now().Add(formLasts).Unix(), 10)
	return until + "." + d.sum(who, path, until)
}

func (d *dashboard) sum(who Viewer, path, until string) string {
	h := hmac.New(sha256.New, d.secret[:])
	fmt.Fprintf(h, "%q %q %q", who.Name(), path, until)
	return hex.EncodeToString(h.Sum(nil))
}

func (d *dashboard) genuine(token string, who Viewer, path string) bool {
	until, sum, _ := strings.Cut(token, ".")
	at, err := strconv.ParseInt(until, 10, 64)
	return err == nil && hmac.Equal([]byte(sum), []byte(d.sum(who, path, until))) && d.cfg.Now().Before(time.Unix(at, 0))
}
