// What an app does with OpenAI's package for Node. Run in a folder that has it; OPENAI_BASE_URL, OPENAI_API_KEY
// and MODEL say where. Ends with the version that was tried.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const here = createRequire(join(process.cwd(), "x.js"));
const OpenAI = here("openai");
const model = process.env.MODEL;
const messages = [{ role: "user", content: "Hello?" }];
const client = new OpenAI({ maxRetries: 0, timeout: 20_000 });

const { data: whole, response } = await client.chat.completions.create({ model, messages }).withResponse();
const text = whole.choices[0].message.content;
assert.ok(text && whole.usage.total_tokens > 0);
assert.equal(response.headers.get("x-stillhouse-version"), whole.model);

let streamed = "";
let usage = null;
const options = { model, messages, stream: true, stream_options: { include_usage: true } };
for await (const chunk of await client.chat.completions.create(options)) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(streamed, text);
assert.ok(usage.total_tokens > 0);

const names = [];
for await (const one of client.models.list()) names.push(one.id);
assert.ok(names.includes(model));
assert.equal((await client.models.retrieve(model)).id, model);
assert.equal((await client.responses.create({ model, input: "Hello?" })).output_text, text);
assert.equal(await client.chat.completions.stream({ model, messages }).finalContent(), text);

const gone = await client.chat.completions.create({ ...options, stream_options: undefined });
for await (const _ of gone) { gone.controller.abort(); break; } // an app that goes away in the middle

await assert.rejects(client.chat.completions.create({ model: "nobody", messages }), (error) =>
  error instanceof OpenAI.NotFoundError && error.code === "model_not_found");
await assert.rejects(client.chat.completions.create({ model, messages, temperature: 9 }), OpenAI.BadRequestError);
await assert.rejects(new OpenAI({ apiKey: "sk-wrong", maxRetries: 0 }).models.list(), OpenAI.AuthenticationError);
const version = JSON.parse(readFileSync(join(process.cwd(), "node_modules/openai/package.json"))).version;
console.log("openai for node", version);
