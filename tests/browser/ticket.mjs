// A page that must not show its key in a URL: it gets a ticket with `fetch`, and streams with `EventSource`, whose
// connection breaks off twice: before anything has come, and in the middle.
// usage: node ticket.mjs '{"base": "http://…", "key": "KEY"}'
//
// Prints what was read, as one line of JSON: {"ids": […], "names": […], "text": "…", "cuts": 2, "leaks": […]}.
import { createServer, connect } from 'node:net';
import { chromium } from 'playwright-core';

const { base, key } = JSON.parse(process.argv[2]);
const PATIENCE = 60_000;
const gateway = new URL(base);

// Between the page and the gateway: cuts the first stream before its first byte, the second after its first token.
let [cuts, cutting] = [0, false];
const between = createServer(page => {
  const there = connect(Number(gateway.port), gateway.hostname);
  let stream = false;
  const cut = () => { cuts += 1; page.destroy(); there.destroy(); };
  page.on('data', bytes => {
    stream ||= bytes.includes('GET /chat/sse');
    there.write(bytes);
  });
  there.on('data', bytes => {
    if (stream && cuts === 0) return cut();
    page.write(bytes);
    if (stream && cuts === 1 && !cutting && bytes.includes('event: token')) {
      cutting = true;
      setTimeout(cut, 50);
    }
  });
  for (const [one, other] of [[page, there], [there, page]]) {
    one.on('error', () => other.destroy());
    one.on('close', () => other.destroy());
  }
});
await new Promise(listening => between.listen(0, '127.0.0.1', listening));
const front = `http://127.0.0.1:${between.address().port}`;

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: [
    '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--disable-background-networking',
    '--disable-component-update', '--disable-sync', '--no-first-run',
  ],
});
try {
  const page = await browser.newPage();
  page.setDefaultTimeout(PATIENCE);
  const leaks = [];
  page.on('request', request => { if (request.url().includes(key)) leaks.push(request.url()); });
  await page.goto(`${front}/docs`);
  const read = await page.evaluate(async ({ key, patience }) => {
    const issued = await fetch('/tickets', { method: 'POST', headers: { Authorization: `Bearer ${key}` } });
    if (issued.status !== 201) throw new Error(`/tickets answers ${issued.status}`);
    const { ticket } = await issued.json();
    const parameters = new URLSearchParams({ message: 'Hi', ticket, key: crypto.randomUUID() });
    const seen = { ids: [], names: [], text: '' };
    await new Promise((resolve, reject) => {
      setTimeout(() => reject(new Error(`no end within ${patience} ms, but ${seen.names}`)), patience);
      const source = new EventSource(`/chat/sse?${parameters}`);
      for (const name of ['start', 'token', 'done', 'error']) {
        source.addEventListener(name, event => {
          if (typeof event.data !== 'string') {
            if (source.readyState === EventSource.CLOSED) reject(new Error(`refused after ${seen.names}`));
            return;
          }
          seen.ids.push(event.lastEventId);
          seen.names.push(name);
          if (name === 'token') seen.text += event.data;
          if (name === 'done' || name === 'error') {
            source.close();
            resolve();
          }
        });
      }
    });
    return seen;
  }, { key, patience: PATIENCE });
  console.log(JSON.stringify({ ...read, cuts, leaks }));
} finally {
  await browser.close();
  between.close();
}
