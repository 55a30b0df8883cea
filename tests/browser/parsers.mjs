// Reads one stream with readers that share no code with ours. usage: node parsers.mjs URL
//
// 1. The `eventsource` package, which is left alone: after the end it comes back with the last id, and must be told to stop.
// 2. `eventsource-parser` over the bytes of the same URL.
//
// Prints one line of JSON, { package: { events, statuses, lastIds }, parser: { events, comments } }, where events are
// [{ name, id, data }], and exits 0; 1 if the stream could not be read. What it must say is for the caller to judge.
import { createParser } from 'eventsource-parser';
import { EventSource } from 'eventsource';

const url = process.argv[2];
if (!url) {
  console.error('usage: node parsers.mjs URL');
  process.exit(2);
}
const PATIENCE = 30_000;
const NAMES = ['start', 'token', 'reasoning', 'tool_call', 'tool_result', 'artifact', 'done', 'error', 'message'];

/** Follows the stream until the package gives up, which it does when it is told to. */
function withPackage() {
  return new Promise((resolve, reject) => {
    const read = { events: [], statuses: [], lastIds: [] };
    const source = new EventSource(url, {
      fetch: async (input, init) => {
        read.lastIds.push(new Headers(init.headers).get('Last-Event-ID'));
        const response = await fetch(input, init);
        read.statuses.push(response.status);
        return response;
      },
    });
    const late = setTimeout(() => { source.close(); reject(new Error('the package was never told to stop')); }, PATIENCE);
    for (const name of NAMES) {
      source.addEventListener(name, event => {
        if (typeof event.data === 'string') {
          read.events.push({ name, id: event.lastEventId, data: event.data });
        } else if (source.readyState === EventSource.CLOSED) {
          clearTimeout(late);
          resolve(read);
        }
      });
    }
  });
}

/** Parses the bytes as they come, cut as they are cut. */
async function withParser() {
  const read = { events: [], comments: [] };
  const parser = createParser({
    onEvent: ({ event, id, data }) => read.events.push({ name: event, id, data }),
    onComment: comment => read.comments.push(comment),
    onError: error => { throw error; },
  });
  const response = await fetch(url, { signal: AbortSignal.timeout(PATIENCE) });
  if (response.status !== 200) throw new Error(`${url} answers ${response.status}`);
  const utf8 = new TextDecoder('utf-8', { fatal: true });
  for await (const bytes of response.body) parser.feed(utf8.decode(bytes, { stream: true }));
  return read;
}

try {
  const [fromPackage, fromParser] = await Promise.all([withPackage(), withParser()]);
  console.log(JSON.stringify({ package: fromPackage, parser: fromParser }));
} catch (error) {
  console.error(String(error?.stack ?? error));
  process.exit(1);
}
