package chandler

// Scheme is how a module is fetched.
type Scheme string

// The schemes of a plugin's URL.
const (
	SchemeOCI   Scheme = "oci"
	SchemeHTTP  Scheme = "http"
	SchemeHTTPS Scheme = "https"
	SchemeFile  Scheme = "file"
)

// Reference is a plugin's URL, parsed.
type Reference struct {
	Scheme Scheme
	// Host is the registry or server, with its port if one was given.
	Host string
	// Repository and Tag are set for oci; Tag is empty when none was written.
	Repository string
	Tag        string
	// Digest is set for oci when the URL pins one.
	Digest ArtifactDigest
	// Path is the absolute path of a file URL; for http and https it is the path
	// with its query.
	Path string
}
