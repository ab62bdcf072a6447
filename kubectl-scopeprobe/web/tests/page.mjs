// Tests of the page in Chromium: `node tests/page.mjs PLUGIN [FOLDER]`, with the path of the plugin, and a folder for screenshots.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

import { ApiServer } from "./api-server.mjs";
import { tests as parts } from "./parts.mjs";
import { laterShop, newcomer, shop } from "./shop.mjs";

const [plugin, pictures] = process.argv.slice(2);
assert.ok(plugin, "the path of the plugin is missing");
const folder = await mkdtemp(join(tmpdir(), "scopeprobe-page-"));
const axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const programs = [];
const tests = [...parts];
const test = (name, run) => tests.push([name, run]);

/** Starts the plugin, and returns the address that it prints. */
async function serve(...options) {
  const program = spawn(resolve(plugin), ["ui", ...options], { cwd: folder, stdio: ["ignore", "pipe", "inherit"] });
  programs.push(program);
  for await (const line of createInterface({ input: program.stdout })) return line;
  throw new Error("the plugin printed no address");
}

const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });

/** Violations of the page's rules in the present test. Each test fails with any that it does not take away. */
const problems = [];

/** Opens the page, and records its problems. */
async function openUnarranged(address, options = {}, script = undefined) {
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 }, ...options });
  const page = await context.newPage();
  const origin = new URL(address).origin;
  page.on("request", (request) => {
    if (!request.url().startsWith(`${origin}/`) && !/^(data|blob):/.test(request.url())) problems.push(`request to ${request.url()}`);
  });
  page.on("console", (message) => message.type() === "error" && problems.push(message.text()));
  page.on("pageerror", (error) => problems.push(error.stack));
  if (script) await page.addInitScript(script);
  await page.goto(address);
  return page;
}

/** Opens the page, and waits until its picture is in view. */
async function open(address, options = {}) {
  const page = await openUnarranged(address, options);
  await arranged(page);
  await page.waitForFunction(() => window.scopeprobePicture.isInView());
  return page;
}

const arranged = (page) => page.locator("#picture[data-arranged]").waitFor();
/** Returns the positions at which nodes are drawn, in the order of their identifiers. */
const positions = (page) =>
  page.evaluate(() => window.scopeprobePicture.cy.nodes().map((node) => [node.id(), node.position().x, node.position().y]).sort(([one], [other]) => (one < other ? -1 : 1)));
/** Waits until the page shows all that it has received. */
const rendered = (page) => page.evaluate(() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve))));
const rows = (page) => page.locator("#rows tr").count();

async function accessible(page) {
  // Not as an element: the content security policy allows no code but the page's own.
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => window.axe.run(document));
  assert.deepEqual(violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html, failureSummary }) => html + failureSummary).join(", ")}`), []);
}

const shopFile = join(folder, "shop.json");
await writeFile(shopFile, JSON.stringify({ apiVersion: "v1", kind: "List", items: shop() }));
const address = await serve("--file", shopFile);

test("namespaces are the first level, with the sums of their edges", async () => {
  const page = await open(address);
  assert.equal(await page.locator("#status").textContent(), "From files");
  const drawn = (await positions(page)).map(([id]) => id);
  assert.deepEqual(drawn, ["group:API server", "group:external", "ns:billing", "ns:data", "ns:edge", "ns:kube-system", "ns:monitoring", "ns:shop"]);
  assert.equal(await rows(page), 16);
  assert.match(await page.locator("#caveats").textContent(), /data\/postgres: 3 ingress edges are not listed/);
  await accessible(page);
});

test("details have the provenance of an edge", async () => {
  const page = await open(`${address}#in=`);
  await page.getByRole("button", { name: "Details of shop/cart to data/redis redis:6379" }).click();
  await rendered(page);
  const text = await page.locator("#details").innerText();
  for (const expected of ["✕ 7, last at 2026-05-02T10:31:00Z", "310, 0 of them open now", "Agents observed both ends", "cgroup of its sockets", "eBPF", "observed"]) {
    assert.ok(text.includes(expected), `${expected} in ${text}`);
  }
  assert.ok(text.includes(`kubectl scopeprobe explain 0000000000000006 --file ${shopFile}`), text);
  await page.getByRole("button", { name: "Details of shop/checkout to api.payments.example :443" }).click();
  await rendered(page);
  const payments = await page.locator("#details").innerText();
  for (const expected of ["≥39 KiB", "of 2 connections", "The server is known by its address alone"]) assert.ok(payments.includes(expected), payments);
  await page.getByRole("button", { name: "Details of billing/report to billing/ledger ledger:5432" }).click();
  await rendered(page);
  assert.match(await page.locator("#details").innerText(), /a guess for some connections[^]*/);
  await page.getByRole("button", { name: "Details of shop/frontend to shop/cart cart:80 :8080" }).click();
  await rendered(page);
  assert.match(await page.locator("#details").innerText(), /Via\s+shop\/frontend \(envoy\)/);
  await accessible(page);
});

test("filters select edges, and nodes that remain do not move", async () => {
  const page = await open(`${address}#in=`);
  const before = new Map((await positions(page)).map(([id, ...at]) => [id, at]));
  const expected = { "is:failed": 1, "is:pending": 1, "is:external": 3, "is:udp": 1, "port:6379": 1, "-port:8080": 10, "ns:billing": 3, "via:envoy": 1, "is:inferred": 1, "from:cart": 2, "is:incomplete": 5, nothing: 0 };
  for (const [text, count] of Object.entries(expected)) {
    await page.locator("#filter").fill(text);
    await rendered(page);
    assert.equal(await rows(page), count, text);
    const drawn = await positions(page);
    assert.equal(drawn.length > 0, count > 0, text);
    for (const [id, ...at] of drawn) assert.deepEqual(at, before.get(id), `${id} has moved`);
  }
  await page.locator("#filter").fill("is:wrong");
  await page.getByText("is:wrong: expected failed").waitFor();
});

test("address of the page restores what it shows", async () => {
  const page = await open(`${address}#in=shop&filter=is%3Afailed`);
  assert.equal(await rows(page), 1);
  assert.equal(await page.locator("#filter").inputValue(), "is:failed");
  await page.getByRole("button", { name: "shop/cart", exact: true }).click();
  await page.waitForURL(/around=Workload%2Fshop%2FDeployment.apps%2Fcart/);
  await rendered(page);
  await arranged(page);
  const other = await open(page.url());
  assert.equal(await rows(other), 1);
  assert.deepEqual(await positions(other), await positions(page));
  await page.goBack();
  await page.waitForURL(/in=shop/);
});

test("everything is done by keyboard", async () => {
  const page = await open(address);
  await page.keyboard.press("w");
  await page.waitForURL(/in=$/);
  await rendered(page);
  await arranged(page);
  await page.keyboard.press("/");
  await page.keyboard.type("cart");
  await page.waitForFunction(() => document.querySelectorAll("#rows tr").length === 4);
  await rendered(page);
  await arranged(page);
  await page.keyboard.press("Tab");
  await page.keyboard.press("g");
  assert.equal(await page.evaluate(() => document.activeElement.id), "picture");
  await page.keyboard.press("ArrowRight");
  await page.waitForURL(/selected=/);
  const selected = page.url();
  await page.keyboard.press("ArrowRight");
  await page.waitForURL((url) => url.href !== selected);
  await page.keyboard.press("Enter");
  await page.waitForURL(/around=/);
  await page.keyboard.press("?");
  await page.locator("#help[open]").waitFor();
  await accessible(page);
  await page.keyboard.press("Escape");
});

test("exports have what is shown", async () => {
  const page = await open(`${address}#in=&filter=cart`);
  const file = async (id) => {
    const [download] = await Promise.all([page.waitForEvent("download"), page.locator(`#${id}`).click()]);
    return readFile(await download.path());
  };
  const csv = String(await file("export-csv")).trim().split("\r\n");
  assert.equal(csv.length, 5);
  assert.match(csv[0], /^id,client,server,/);
  assert.equal(String(await file("export-mermaid")).match(/-->|-\.->/g).length, 4);
  const svg = String(await file("export-svg"));
  assert.equal(svg.match(/class="edge/g).length, 4);
  // The page itself forbids the styles of the picture.
  const blank = await page.context().newPage();
  assert.equal(await blank.evaluate((text) => new DOMParser().parseFromString(text, "image/svg+xml").querySelectorAll("parsererror").length, svg), 0);
  assert.deepEqual([...(await file("export-png")).subarray(1, 4)], [...Buffer.from("PNG")]);
});

test("more than 300 nodes are drawn in groups, and the page says so", async () => {
  const call = (number) => {
    const peer = (side) => ({ type: "Workload", apiVersion: "apps/v1", kind: "Deployment", namespace: `n${number % 10}`, name: `${side}${number}` });
    return { id: String(number).padStart(16, "0"), client: peer("c"), server: peer("s"), port: 80, protocol: "TCP", counters: { opened: 1, active: 0, failed: 0 } };
  };
  const large = join(folder, "large.json");
  await writeFile(large, JSON.stringify({ apiVersion: "view.scopeprobe.io/v1alpha1", kind: "TopologyMap", edges: Array.from({ length: 600 }, (_, number) => call(number)) }));
  const page = await open(`${await serve("--file", large)}#in=`);
  assert.equal((await positions(page)).length, 248);
  assert.match(await page.locator("#notes").textContent(), /960 nodes are drawn as 8 groups/);
  assert.match(await page.locator("#count").textContent(), /500 of 600 edges are listed/);
  await page.getByRole("button", { name: "Draw more" }).click();
  await page.waitForFunction(() => window.scopeprobePicture.cy.nodes().length === 1200);
});

test("edges appear and leave with their objects, and no node moves", async () => {
  const api = new ApiServer();
  const kubeconfig = join(folder, "kubeconfig");
  for (const object of shop()) api.put(object);
  await writeFile(kubeconfig, await api.start());
  const page = await open(`${await serve("--kubeconfig", kubeconfig, "--all-namespaces")}#in=`);
  await page.getByText("● Live").waitFor();
  await page.waitForFunction(() => document.querySelectorAll("#rows tr").length === 16);
  const before = await positions(page);
  assert.equal(before.length, 16);
  const begin = Date.now();
  for (const object of laterShop()) api.put(object);
  await page.getByRole("button", { name: "Details of shop/catalog to data/redis redis:6379" }).waitFor();
  console.log(`    new edge after ${Date.now() - begin} ms`);
  assert.deepEqual(await positions(page), before);
  // No other object lists this edge.
  api.delete("monitoring", "daemonset-monitor");
  await page.getByRole("button", { name: "Details of monitoring/monitor to API server :443" }).waitFor({ state: "detached" });
  assert.equal(await rows(page), 16);
  assert.deepEqual(await positions(page), before.filter(([id]) => id !== "ApiServer"));
  api.interrupt();
  await page.getByText("The watch of the cluster is interrupted").waitFor();
  for (const object of shop()) api.put(object);
  api.isDown = false;
  await page.getByText("● Live").waitFor();
  await page.getByRole("button", { name: "Details of monitoring/monitor to API server :443" }).waitFor();
  await page.getByRole("button", { name: "Details of shop/catalog to data/redis redis:6379" }).waitFor({ state: "detached" });
  assert.equal(await rows(page), 16);
  assert.deepEqual(problems, []);
  programs.at(-1).kill();
  await page.getByText("The connection to the plugin is interrupted").waitFor();
  await page.context().close();
  assert.ok(problems.splice(0).every((text) => text.includes("net::ERR_")), "the plugin ended");
  api.stop();
});

/** Holds requests to the worker back until `release`. */
function holdRequests() {
  window.held = [];
  window.release = () => window.held.splice(0).forEach((send) => send());
  window.Worker = class extends Worker {
    postMessage(message) {
      window.held.push(() => super.postMessage(message));
    }
  };
}

test("changes during a slow layout send no further request, and the picture appears with them", async () => {
  const api = new ApiServer();
  const kubeconfig = join(folder, "slow-kubeconfig");
  for (const object of shop()) api.put(object);
  await writeFile(kubeconfig, await api.start());
  const page = await openUnarranged(`${await serve("--kubeconfig", kubeconfig, "--all-namespaces")}#in=`, {}, holdRequests);
  await page.waitForFunction(() => document.querySelectorAll("#rows tr").length === 16);
  for (const object of laterShop()) api.put(object);
  await page.getByRole("button", { name: "Details of shop/catalog to data/redis redis:6379" }).waitFor();
  api.put(newcomer());
  await page.getByRole("button", { name: "Details of shop/newcomer to data/redis redis:6379" }).waitFor();
  assert.equal(await page.evaluate(() => window.held.length), 1);
  assert.deepEqual(await positions(page), []);
  await page.evaluate(() => window.release());
  await arranged(page);
  const drawn = await positions(page);
  assert.equal(drawn.length, 17);
  assert.equal(new Set(drawn.map(([, ...at]) => at.join())).size, 17, "two nodes have one position");
  assert.ok(drawn.some(([id]) => id === "Workload/shop/Deployment.apps/newcomer"));
  assert.equal(await page.evaluate(() => window.held.length), 0);
  api.stop();
});

/** Lets workers fail until `repair`. */
function breakWorker() {
  const Working = window.Worker;
  window.repair = () => (window.Worker = Working);
  window.Worker = class extends Working {
    postMessage() {
      this.dispatchEvent(new ErrorEvent("error", { message: "out of memory" }));
    }
  };
}

test("failure of the layout is shown, and the nodes can be arranged again", async () => {
  const page = await openUnarranged(`${address}#in=`, {}, breakWorker);
  await page.getByText("The nodes could not be arranged (out of memory)").waitFor();
  assert.deepEqual(await positions(page), []);
  await page.evaluate(() => window.repair());
  await page.getByRole("button", { name: "Arrange again" }).click();
  await arranged(page);
  assert.equal((await positions(page)).length, 16);
  assert.equal(await page.locator("#message").textContent(), "");
});

test("details of a group count the edges that are shown", async () => {
  const page = await open(`${address}#selected=ns%3Ashop`);
  const text = () => page.locator("#details").innerText();
  assert.match(await text(), /Namespace: 4 peers shown[^]*Calls \(10\)[^]*Called by \(6\)/);
  await page.evaluate(() => (location.hash = "#filter=is:failed&selected=ns:shop"));
  await page.getByText("Namespace: 1 peer shown").waitFor();
  assert.match(await text(), /Calls \(1\)[^]*Called by \(0\)/);
});

test("gaps belong to the workload that they name", async () => {
  const twin = join(folder, "twins.json");
  const peer = (kind, name) => ({ type: "Workload", apiVersion: "apps/v1", kind, namespace: "shop", name });
  const call = (id, client, server) => ({ id, client, server, protocol: "TCP", counters: { opened: 1, active: 0, failed: 0 } });
  const edges = [call("1", peer("Deployment", "web"), peer("StatefulSet", "web")), call("2", peer("Deployment", "web"), peer("Deployment", "webshop"))];
  const caveats = ["shop/web: 3 ingress edges are not listed", "shop/web2: 1 edge is not listed", "shop/webshop"];
  await writeFile(twin, JSON.stringify({ apiVersion: "view.scopeprobe.io/v1alpha1", kind: "TopologyMap", edges, caveats }));
  const page = await open(`${await serve("--file", twin)}#in=&selected=Workload%2Fshop%2FStatefulSet.apps%2Fweb`);
  assert.match(await page.locator("#details").innerText(), /shop\/web \(StatefulSet\)/);
  assert.deepEqual(await page.locator("#details .caveat").allTextContents(), ["Incomplete: shop/web: 3 ingress edges are not listed (This workload, or another with its name.)"]);
  await page.getByRole("button", { name: "Details of shop/web (Deployment) to shop/webshop" }).waitFor();
});

test("problems of the page are recorded", async () => {
  const page = await open(address);
  const refused = page.waitForEvent("console", (message) => message.type() === "error");
  await page.evaluate(() => fetch("http://127.0.0.2:9/").catch(() => undefined));
  await refused;
  await rendered(page);
  assert.match(problems.splice(0).join("\n"), /Content Security Policy/);
});

test("all themes are accessible", async () => {
  const themes = { light: {}, dark: { colorScheme: "dark" }, contrast: { contrast: "more" }, "dark-contrast": { colorScheme: "dark", contrast: "more" } };
  const page = await open(`${address}#in=`);
  await page.getByRole("button", { name: "Details of shop/cart to data/redis redis:6379" }).click();
  await page.locator("#details dl").waitFor();
  for (const [name, media] of Object.entries(themes)) {
    await page.emulateMedia({ colorScheme: "light", contrast: "no-preference", reducedMotion: "reduce", ...media });
    await accessible(page);
    assert.deepEqual(problems, [], name);
  }
});

/** Writes a picture of a place for the documentation. */
async function takePicture(name, hash, options = {}) {
  // Commands in the pictures have a path that is the same everywhere.
  const page = await open((await serve("--file", "shop.json")) + hash, { viewport: { width: 1180, height: 720 }, ...options });
  await page.waitForTimeout(300);
  await page.screenshot({ path: join(pictures, `view-${name}.png`) });
}

if (pictures) {
  test("pictures are written", async () => {
    const cart = "Workload%2Fshop%2FDeployment.apps%2Fcart";
    const failing = `${cart}%3EWorkload%2Fdata%2FStatefulSet.apps%2Fredis`;
    await takePicture("namespaces", "");
    await takePicture("workloads", `#in=shop&selected=${failing}`);
    await takePicture("dark", `#in=&selected=${failing}`, { colorScheme: "dark" });
    await takePicture("around", `#around=${cart}&selected=${cart}`, { contrast: "more" });
  });
}

let failed = 0;
for (const [name, run] of tests) {
  const begin = Date.now();
  problems.length = 0;
  try {
    await run();
    assert.deepEqual(problems, [], "problems of the page");
    console.log(`ok    ${name} (${Date.now() - begin} ms)`);
  } catch (error) {
    failed++;
    console.log(`FAIL  ${name}\n${error.stack}`);
  }
  await Promise.all(browser.contexts().map((context) => context.close()));
}
await browser.close();
for (const program of programs) program.kill();
await rm(folder, { recursive: true });
console.log(`${tests.length - failed} of ${tests.length} tests passed`);
process.exitCode = failed === 0 ? 0 : 1;
