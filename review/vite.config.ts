import { defineConfig } from "vitest/config";

// The service's address while the page is served by `npm run watch`.
const service = process.env["CONTOURCAST_URL"] ?? "http://127.0.0.1:8000";

export default defineConfig({
  base: "/review/",
  // The service wants to be called by the name that the page has.
  server: { proxy: { "/v1": { target: service, changeOrigin: false } } },
  build: {
    outDir: "../contourcast/service/static",
    emptyOutDir: true,
    target: "es2022",
    // Nothing inline: the policy of the page allows scripts and styles from its own address alone.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    sourcemap: false,
  },
  test: { include: ["src/**/*.test.ts", "tests/**/*.test.ts"], environment: "node", isolate: false, maxWorkers: 2 },
});
