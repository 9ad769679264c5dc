// Package chandlerv1 is what control plane, agents and the chandler command
// say to each other: attachments, reports, module bytes and the admin API. It
// is generated from the protobuf files beside it by "make generate" and holds
// no rules; conversions to the nouns of package chandler are elsewhere.
package chandlerv1
