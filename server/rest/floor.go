package rest

import (
	"context"
	"net"

	"github.com/gofiber/fiber/v2"
)

// Floor serves GET /Patient/:id on the listener with what fetch returns and nothing else: no token, no decision, no audit. It
// is bench's yardstick, never part of a Server. The returned function stops it.
func Floor(l net.Listener, fetch func(ctx context.Context, id string) ([]byte, error)) (stop func()) {
	return bare(l, func(c *fiber.Ctx) error {
		body, err := fetch(context.Background(), c.Params("id"))
		if err != nil {
			return fiber.ErrNotFound
		}
		c.Set(fiber.HeaderContentType, "application/fhir+json; charset=utf-8")
		return c.Send(body)
	})
}

// Stage serves GET /Patient/:id with the body to whom admit lets through, by the values of the Authorization headers and the id. It is
// bench's, too: what admit does is all that it adds to bare Fiber.
func Stage(l net.Listener, body []byte, admit func(authorization [][]byte, id string) error) (stop func()) {
	return bare(l, func(c *fiber.Ctx) error {
		if err := admit(c.Request().Header.PeekAll(fiber.HeaderAuthorization), c.Params("id")); err != nil {
			return fiber.ErrUnauthorized
		}
		c.Set(fiber.HeaderContentType, "application/fhir+json; charset=utf-8")
		return c.Send(body)
	})
}

func bare(l net.Listener, serve fiber.Handler) (stop func()) {
	app := fiber.New(fiber.Config{DisableStartupMessage: true})
	app.Get("/Patient/:id", serve)
	go func() { _ = app.Listener(l) }()
	return func() { _ = app.Shutdown() }
}
