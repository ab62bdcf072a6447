// Bundles the page: `node build.mjs FOLDER`. The result depends on the sources and the locked packages alone.
import { build } from "esbuild";
import { mkdir, readFile, writeFile } from "node:fs/promises";

const folder = process.argv[2] ?? "dist";
await mkdir(folder, { recursive: true });
const { metafile } = await build({
  entryPoints: { app: "src/main.ts", layout: "src/layout.ts" },
  outdir: folder,
  bundle: true,
  minify: true,
  format: "iife",
  target: "es2022",
  legalComments: "none",
  metafile: true,
  logLevel: "warning",
});

// The licences of all packages that are in the bundle, as these require.
const packages = new Set();
for (const input of Object.keys(metafile.inputs)) {
  const name = /^node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(input)?.[1];
  if (name) packages.add(name);
}
const texts = [];
for (const name of [...packages].sort()) {
  const { version } = JSON.parse(await readFile(`node_modules/${name}/package.json`, "utf8"));
  texts.push(`${name} ${version}\n\n${(await readFile(`node_modules/${name}/LICENSE`, "utf8")).trim()}\n`);
}
await writeFile(`${folder}/licenses.txt`, texts.join("\n"));
