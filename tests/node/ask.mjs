// Asks a served model with OpenAI's own client for Node; prints what came back as one JSON document.
import OpenAI from "openai";

const client = new OpenAI({ maxRetries: 0, timeout: 60_000 });
const asked = { model: "lm", messages: [{ role: "user", content: "東京 🚀" }], max_tokens: 12, seed: 5 };

const whole = await client.chat.completions.create(asked);

let streamed = "";
let usage = null;
const chunks = await client.chat.completions.create({
  ...asked,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of chunks) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}

const failure = async (changes) => {
  try {
    await client.chat.completions.create({ ...asked, ...changes });
  } catch (error) {
    return error;
  }
  throw new Error("it was answered");
};
const error = await failure({ logprobs: true, top_logprobs: 3 });
const missing = await failure({ model: "nope" });

console.log(
  JSON.stringify({
    whole: whole.choices[0].message.content,
    streamed,
    usage,
    error: { kind: error.constructor.name, status: error.status, param: error.param },
    missing: missing.constructor.name,
  }),
);
