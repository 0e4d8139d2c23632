//go:build desktop

package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/wailsapp/wails/v2"
	"github.com/wailsapp/wails/v2/pkg/options"
	"github.com/wailsapp/wails/v2/pkg/options/assetserver"
	"github.com/wailsapp/wails/v2/pkg/options/linux"
	"github.com/wailsapp/wails/v2/pkg/options/mac"
	"github.com/wailsapp/wails/v2/pkg/options/windows"
	"github.com/wailsapp/wails/v2/pkg/runtime"
)

// openWindow shows the dashboard in a window of its own until that is closed or ctx ends. The handler gets every request of
// the window but those for the runtime that Wails itself injects. Nothing is bound: the pages reach Go over HTTP only.
func openWindow(ctx context.Context, api string, log *slog.Logger) error {
	var window context.Context // set before the first request
	h, err := newHandler(config{
		API: api, Host: windowHost, Logger: log,
		OpenBrowser: func(url string) { runtime.BrowserOpenURL(window, url) },
	})
	if err != nil {
		return err
	}
	defer h.close()
	err = wails.Run(&options.App{
		Title: "Chartkeep", Width: 1280, Height: 800, MinWidth: 800, MinHeight: 500,
		AssetServer:        &assetserver.Options{Middleware: func(http.Handler) http.Handler { return h }},
		SingleInstanceLock: &options.SingleInstanceLock{UniqueId: "org.chartkeep.dashboard"},
		OnStartup: func(c context.Context) {
			window = c
			context.AfterFunc(ctx, func() { runtime.Quit(c) })
		},
		Linux: &linux.Options{ProgramName: "chartkeep-dashboard", WebviewGpuPolicy: linux.WebviewGpuPolicyNever},
		// Other programs on the screen must not photograph what is in the trail. Linux has no such switch.
		Mac:     &mac.Options{ContentProtection: true},
		Windows: &windows.Options{ContentProtection: true},
	})
	if err != nil {
		return fmt.Errorf("opening the window: %w", err)
	}
	return nil
}
