// Measures the page with a large map in Chromium, and prints a table: `node bench/bench.mjs PLUGIN`. RUNS is the number of runs.
import { spawn } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

import { ApiServer } from "../tests/api-server.mjs";
import { Fleet } from "./fleet.mjs";

const RUNS = Number(process.env.RUNS || 5);
const PAN_MILLISECONDS = 3000;
const LONGEST_WAIT = 180_000;
const MEBIBYTE = 2 ** 20;
const probe = fileURLToPath(new URL("probe.js", import.meta.url));

// Name, unit and demanded bound of each figure.
const FIGURES = {
  snapshot: ["first snapshot of the map", "MiB"],
  firstPicture: ["first picture after the data: namespaces", "ms", "≤ 1000"],
  memoryFirst: ["memory of the tab then", "MiB", "≤ 150"],
  filter: ["filter expression, at the namespaces", "ms"],
  openNamespace: ["opening the largest namespace", "ms"],
  change: ["changed object to its drawn edge, there", "ms", "≤ 1000"],
  panNamespace: ["pictures per second while panning there", "", "≥ 20"],
  openPeer: ["opening a neighbourhood", "ms"],
  openHub: ["opening that of the workload with most callers", "ms"],
  openAll: ["opening all workloads, in groups", "ms"],
  panAll: ["pictures per second while panning there", "", "≥ 20"],
  memory: ["memory of the tab then", "MiB", "≤ 150"],
  heap: ["of it, objects of the page", "MiB"],
  drawMore: ["drawing more of them", "ms"],
  panMore: ["pictures per second while panning there", "", "≥ 20"],
  memoryMore: ["memory of the tab then", "MiB", "≤ 150"],
};

const id = ({ namespace, kind, name }) => `Workload/${namespace}/${kind}.apps/${name}`;

function median(values) {
  const sorted = [...values].sort((one, other) => one - other);
  const middle = Math.floor(sorted.length / 2);
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** Starts the plugin, and returns it with the address that it prints. */
async function serve(plugin, ...options) {
  const program = spawn(plugin, ["ui", ...options], { stdio: ["ignore", "pipe", "ignore"] });
  for await (const address of createInterface({ input: program.stdout })) return { program, address };
  throw new Error("the plugin printed no address");
}

/** Drags the picture by the mouse, and returns how often it was drawn in a second. */
async function pan(page) {
  const { x, y, width, height } = await page.locator("#picture").boundingBox();
  // In the corner, there is no node to drag.
  await page.mouse.move(x + 3, y + 3);
  await page.mouse.down();
  await page.mouse.move(x + 20, y + 20);
  await page.evaluate(() => window.benchProbe.startCounting());
  const end = Date.now() + PAN_MILLISECONDS;
  for (let step = 0; Date.now() < end || step < 10; step++) {
    const angle = step / 12;
    await page.mouse.move(x + width / 2 + (Math.cos(angle) * width) / 4, y + height / 2 + (Math.sin(angle) * height) / 4);
  }
  const rate = await page.evaluate(() => window.benchProbe.stopCounting());
  await page.mouse.up();
  return rate;
}

/** Returns the memory of the page's process that is no file's, and that of its objects, in MiB. */
async function memory(browser, page) {
  const own = await page.context().newCDPSession(page);
  await own.send("HeapProfiler.collectGarbage");
  const { usedSize } = await own.send("Runtime.getHeapUsage");
  const { processInfo } = await (await browser.newBrowserCDPSession()).send("SystemInfo.getProcessInfo");
  const renderers = processInfo.filter(({ type }) => type === "renderer");
  const sizes = await Promise.all(renderers.map(async (one) => Number(/RssAnon:\s+(\d+)/.exec(await readFile(`/proc/${one.id}/status`, "utf8"))[1])));
  // The others are spare.
  return { tab: Math.max(...sizes) / 1024, heap: usedSize / MEBIBYTE };
}

/** Adds a call between two drawn workloads, and returns the milliseconds until the page has drawn it. */
async function change(api, fleet, page, port) {
  const pair = await page.evaluate(() => window.benchProbe.unrelated());
  const [client, server] = pair.map((end) => fleet.workloads.find((workload) => id(workload) === end));
  const [drawn] = [page.evaluate((ends) => window.benchProbe.edgeBetween(ends), pair), await page.evaluate(() => window.benchProbe.frame())];
  fleet.call(client, server, port);
  const objects = [fleet.object(client), fleet.object(server)];
  const begin = Date.now();
  for (const object of objects) api.put(object);
  return (await drawn) - begin;
}

/** Opens the page in a new browser, and measures each figure once. */
async function measure(api, fleet, address, run) {
  const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
  try {
    const page = await (await browser.newContext({ viewport: { width: 1440, height: 900 } })).newPage();
    const filter = (text) => page.evaluate((value) => window.benchProbe.filter(value), text);
    const go = (hash) => page.evaluate((value) => window.benchProbe.go(value), hash);
    const counts = () => page.evaluate(() => [window.scopeprobePicture.cy.nodes().length, window.scopeprobePicture.cy.edges().length]);
    await page.addInitScript({ path: probe });
    await page.goto(address);
    await page.waitForFunction(() => window.benchProbe.first !== undefined, undefined, { timeout: LONGEST_WAIT });
    const first = await page.evaluate(() => window.benchProbe.first);
    const result = { firstPicture: first.picture, snapshot: first.bytes / MEBIBYTE, drawn: { namespaces: await counts() } };
    result.memoryFirst = (await memory(browser, page)).tab;
    result.filter = median([await filter("is:failed"), await filter("port:6379 -ns:media-team-6"), await filter("gateway")]);
    await filter("");
    result.openNamespace = await go(`#in=${fleet.workloads[0].namespace}`);
    result.drawn["the largest namespace"] = await counts();
    result.change = await change(api, fleet, page, 7000 + run);
    result.panNamespace = await pan(page);
    const callers = (workload) => fleet.ingress.get(workload).length;
    const hub = fleet.workloads.reduce((one, other) => (callers(other) > callers(one) ? other : one));
    result.openPeer = await go(`#around=${encodeURIComponent(id(fleet.workloads[1000 + run]))}`);
    result.openHub = await go(`#around=${encodeURIComponent(id(hub))}`);
    result.openAll = await go("#in=");
    result.drawn["all workloads, in groups"] = await counts();
    result.panAll = await pan(page);
    const { tab, heap } = await memory(browser, page);
    Object.assign(result, { memory: tab, heap });
    result.drawMore = await go("#in=&whole=1");
    result.drawn["more of them"] = await counts();
    result.panMore = await pan(page);
    result.memoryMore = (await memory(browser, page)).tab;
    return result;
  } finally {
    await browser.close();
  }
}

function print(results) {
  const shown = (value, unit) => (unit === "ms" || value >= 100 ? value.toFixed(0) : value.toFixed(1));
  console.log(`${availableParallelism()} processors, ${results.length} ${results.length === 1 ? "run" : "runs"}, canvas (the page has no WebGL)`);
  for (const [place, [nodes, edges]] of Object.entries(results[0].drawn)) console.log(`${place}: ${nodes} nodes and ${edges} lines are drawn`);
  console.log("\n| figure | median | least to most | demanded |\n|---|---|---|---|");
  for (const [name, [text, unit, demanded = ""]] of Object.entries(FIGURES)) {
    const values = results.map((result) => result[name]);
    const [least, most] = [Math.min(...values), Math.max(...values)].map((value) => shown(value, unit));
    console.log(`| ${text} | ${shown(median(values), unit)} ${unit} | ${least} to ${most} | ${demanded} |`.replaceAll("  ", " "));
  }
}

const [plugin] = process.argv.slice(2);
if (plugin === undefined) throw new Error("the path of the plugin is missing");
const fleet = new Fleet();
const api = new ApiServer();
for (const object of fleet.objects()) api.put(object);
const folder = await mkdtemp(join(tmpdir(), "scopeprobe-bench-"));
const kubeconfig = join(folder, "kubeconfig");
await writeFile(kubeconfig, await api.start());
const { program, address } = await serve(plugin, "--kubeconfig", kubeconfig, "--all-namespaces");
try {
  console.log(`${fleet.workloads.length} workloads with ${fleet.calls.length} edges in ${new Set(fleet.workloads.map(({ namespace }) => namespace)).size} namespaces`);
  const results = [];
  for (let run = 0; run < RUNS; run++) {
    results.push(await measure(api, fleet, address, run));
    console.error(`run ${run + 1} of ${RUNS}: first picture after ${results.at(-1).firstPicture.toFixed(0)} ms`);
  }
  print(results);
} finally {
  program.kill();
  api.stop();
  await rm(folder, { recursive: true });
}
