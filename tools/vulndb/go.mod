// The Go vulnerability database as a module: only its data is used (data/osv), by
// "make vulncheck", so no package is imported. To have it newer:
//
//	go -C tools/vulndb get golang.org/x/vulndb@latest
module chandler.dev/chandler/tools/vulndb

go 1.26.0

require golang.org/x/vulndb v0.0.0-20261105234957-e22db6528018
