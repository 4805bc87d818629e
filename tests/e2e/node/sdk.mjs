// One use of the official SDK: `node sdk.mjs BASE_URL USE`. What came of it is printed as JSON, a line at a time.
import OpenAI from 'openai';

const [baseURL, use] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: process.env.KEY ?? 'unused', maxRetries: 0, timeout: 30_000 });
const retrying = client.withOptions({ maxRetries: 1 });
const model = 'demo';
const messages = [{ role: 'user', content: 'What is continuous batching?' }];
const endless = { model, messages, stream: true, max_tokens: 1_900, ignore_eos: true };

const say = (what) => console.log(JSON.stringify(what));

// What a program gets that catches it.
function failure(error) {
  const { status, code, param, requestID } = error;
  return { class: error.constructor.name, status, code, param, requestID, message: error.message };
}

async function failed(work) {
  try {
    return { answered: await work() };
  } catch (error) {
    return failure(error);
  }
}

const uses = {
  async completion() {
    const { data, request_id } = await client.chat.completions
      .create({ model, messages, temperature: 0 })
      .withResponse();
    say({ text: data.choices[0].message.content, usage: data.usage, request_id });
  },

  async stream() {
    const asked = { model, messages, temperature: 0, stream: true, stream_options: { include_usage: true } };
    const pieces = [];
    let usage = null;
    for await (const chunk of await client.chat.completions.create(asked)) {
      pieces.push(chunk.choices[0]?.delta.content ?? '');
      usage = chunk.usage ?? usage;
    }
    say({ text: pieces.join(''), pieces: pieces.length, usage });
  },

  async helper() {
    const stream = client.chat.completions.stream({ model, messages, temperature: 0 });
    say({ text: await stream.finalContent() });
  },

  async others() {
    const models = [];
    for await (const each of client.models.list()) models.push(each.id);
    const { data } = await client.embeddings.create({ model, input: ['A container', 'A GPU'] });
    say({ models, one: (await client.models.retrieve(model)).id, vectors: data.map((each) => each.embedding.length) });
  },

  async refusals() {
    const ask = (fields) => failed(() => client.chat.completions.create({ model, messages, ...fields }));
    say({
      misspelt: await ask({ temprature: 1 }),
      unknown: await ask({ model: 'gpt-9' }),
      elsewhere: await failed(() => client.files.list()),
    });
  },

  async refused() {
    say(await failed(() => client.chat.completions.create({ model, messages })));
  },

  async retried() {
    const began = Date.now();
    const done = await retrying.chat.completions.create({ model, messages });
    say({ text: done.choices[0].message.content, waited_ms: Date.now() - began });
  },

  async broken() {
    let text = '';
    const error = await failed(async () => {
      for await (const chunk of await client.chat.completions.create({ model, messages, stream: true })) {
        text += chunk.choices[0].delta.content ?? '';
      }
      return text;
    });
    const ofHelper = await failed(() => client.chat.completions.stream({ model, messages }).finalContent());
    say({ text, error, ofHelper });
  },

  // The program goes on for as long as it is let: only the SDK can have ended the engine's work.
  async left() {
    for await (const _ of await client.chat.completions.create(endless)) break;
    await staying();
  },

  async aborted() {
    const abort = new AbortController();
    const stream = await client.chat.completions.create(endless, { signal: abort.signal });
    for await (const _ of stream) abort.abort();
    await staying();
  },

  async late() {
    const whole = { ...endless, stream: false };
    say(await failed(() => client.chat.completions.create(whole, { timeout: 300 })));
    await staying();
  },
};

async function staying() {
  say({ left: true });
  await new Promise((resolve) => process.stdin.once('end', resolve).resume());
}

await uses[use]();
