// Requests to the server that this page comes from: not too many at a time, patient with a busy server, and with words
// for people where there is no answer.

const AT_ONCE = 4; // more would only fill the server's queue
const ATTEMPTS = 6; // at a server that is busy
const LONGEST_PAUSE = 10; // seconds between them, whatever the server asks for
const PATIENCE = 120_000; // milliseconds for one answer
const OVER = "no answer within"; // how the server says that the time for one answer was over
const LASTING = [413, 415, 422]; // statuses of what would be refused again

/** An error in words; a lasting one comes again however often one asks. */
export class Failure extends Error {
  constructor(words, lasting = false) {
    super(words);
    this.lasting = lasting;
  }
}

/** What `read` makes of the response. Before each new attempt at a busy server, `onBusy` is called; what took the server
 * too long is not tried again. */
export async function ask(path, read, { signal, onBusy, ...options } = {}) {
  for (let attempt = 1; ; attempt++) {
    let response;
    try {
      const limits = [AbortSignal.timeout(PATIENCE), ...(signal ? [signal] : [])];
      response = await fetch(path, { ...options, signal: AbortSignal.any(limits) });
      if (response.ok) return await read(response);
    } catch {
      throw new Failure("The server does not answer. Is it still running?");
    }
    if (response.status !== 503 || attempt === ATTEMPTS) throw await refusal(response);
    const failure = await refusal(response);
    if (failure.message.startsWith(OVER)) throw failure; // the same work would take as long again
    onBusy?.();
    const wished = parseInt(response.headers.get("Retry-After"), 10);
    await pause(wished >= 0 ? Math.min(wished, LONGEST_PAUSE) : 1, signal);
  }
}

/** The same, with a file in a form's field, in its turn; an urgent one goes before those that wait. */
export function send(path, read, field, file, { urgent = false, onStart, ...options } = {}) {
  return inTurn(async () => {
    onStart?.();
    await file.slice(0, 1).arrayBuffer().catch(() => {
      throw new Failure("The browser cannot read it: a folder, perhaps, or a file that is gone.");
    });
    const body = new FormData();
    body.append(field, file, file.name);
    return ask(path, read, { method: "POST", body, ...options });
  }, urgent);
}

async function refusal(response) {
  const { detail } = await response.json().catch(() => ({})); // a proxy's page, which has no words for us
  const words = typeof detail === "string" ? detail : `The server answers with status ${response.status}.`;
  return new Failure(words, LASTING.includes(response.status));
}

function pause(seconds, signal) {
  return new Promise((resolve) => {
    setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", resolve, { once: true });
  });
}

const queue = [];
let running = 0;

function inTurn(task, urgent) {
  return new Promise((resolve, reject) => {
    queue[urgent ? "unshift" : "push"](() => task().then(resolve, reject));
    startNext();
  });
}

function startNext() {
  while (running < AT_ONCE && queue.length) {
    running++;
    queue.shift()().finally(() => {
      running--;
      startNext();
    });
  }
}
