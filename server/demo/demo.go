// Package demo is everything that the embedded default needs beside the server itself: a private PostgreSQL cluster, a
// development authorization server, and a generator of synthetic patients. Nothing here is reachable from serve.
package demo
