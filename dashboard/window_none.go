//go:build !desktop

package main

import (
	"context"
	"fmt"
	"log/slog"
)

// openWindow of a program that was built without one.
func openWindow(context.Context, string, *slog.Logger) error {
	return fmt.Errorf("%w: this build has no window: use --web, or build with -tags desktop,production,webkit2_41", errUsage)
}
