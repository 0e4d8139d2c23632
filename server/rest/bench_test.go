package rest_test

import (
	"net"
	"testing"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"
)

// BenchmarkRead compares a read through everything but PostgreSQL with a bare Fiber handler that sends the same bytes.
func BenchmarkRead(b *testing.B) {
	d := deploy(b, nil)
	d.patient("p1")
	token := d.as("clinician")
	body := d.do("GET", "/fhir/R4/Patient/p1", token, "").body

	bare := fiber.New(fiber.Config{DisableStartupMessage: true})
	bare.Get("/fhir/R4/:type/:id", func(c *fiber.Ctx) error {
		c.Set("Content-Type", "application/fhir+json; charset=utf-8")
		return c.Send(body)
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(b, err)
	go func() { _ = bare.Listener(l) }()
	b.Cleanup(func() { _ = bare.Shutdown() })

	for _, target := range []struct{ name, addr string }{{"bare", l.Addr().String()}, {"chartkeep", d.addr}} {
		b.Run(target.name, func(b *testing.B) {
			client := &fasthttp.Client{MaxConnsPerHost: 64}
			b.SetParallelism(16)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				req, resp := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
				req.SetRequestURI("http://" + target.addr + "/fhir/R4/Patient/p1")
				req.Header.Set("Authorization", "Bearer "+token)
				for pb.Next() {
					if err := client.Do(req, resp); err != nil || resp.StatusCode() != 200 {
						b.Errorf("%v %d", err, resp.StatusCode())
						return
					}
				}
			})
			client.CloseIdleConnections()
		})
	}
}
