package rest

import (
	"context"
	"net"

	"github.com/gofiber/fiber/v2"
)

// Floor serves GET /Patient/:id on the listener with what fetch returns and nothing else: no token, no decision, no audit. It
// is bench's yardstick, never part of a Server. The returned function stops it.
func Floor(l net.Listener, fetch func(ctx context.Context, id string) ([]byte, error)) (stop func()) {
	app := fiber.New(fiber.Config{DisableStartupMessage: true})
	app.Get("/Patient/:id", func(c *fiber.Ctx) error {
		body, err := fetch(context.Background(), c.Params("id"))
		if err != nil {
			return fiber.ErrNotFound
		}
		c.Set(fiber.HeaderContentType, "application/fhir+json; charset=utf-8")
		return c.Send(body)
	})
	go func() { _ = app.Listener(l) }()
	return func() { _ = app.Shutdown() }
}
