import react from '@vitejs/plugin-react';
import { defineConfig } from 'vitest/config';

export default defineConfig({
  plugins: [react()],
  html: { cspNonce: '__NONCE__' }, // dashboard/handler.go puts a fresh one here at each page load
  build: {
    assetsInlineLimit: 0, // no data: URLs
    modulePreload: { polyfill: false },
    target: ['chrome120', 'safari17'], // WebKitGTK 2.42, WebView2 and browsers of the same age
  },
  test: { include: ['src/**/*.test.ts', 'test/**/*.test.ts'] },
});
