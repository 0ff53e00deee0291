// What test_openai_node.py has OpenAI's own client do; prints what came of it as JSON.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "unused", maxRetries: 0 });
const asked = { model: "tiny", prompt: "sneaker", seed: 7 };

const models = [];
for await (const model of client.models.list()) models.push(model.id);

const answer = await client.images.generate({ ...asked, n: 2 });
const byUrl = await client.images.generate({ ...asked, response_format: "url" });
const fetched = Buffer.from(await (await fetch(byUrl.data[0].url)).arrayBuffer());

const events = [];
const stream = await client.images.generate({ ...asked, stream: true, partial_images: 3 });
for await (const event of stream) events.push(event);

const failures = [];
for (const changes of [{ model: "sdxl" }, { size: "1024x1024" }, { seed: 666 }]) {
  try {
    await client.images.generate({ ...asked, ...changes });
  } catch (error) {
    failures.push([error.constructor.name, error.status, error.code, error.param ?? null]);
  }
}

console.log(
  JSON.stringify({
    models,
    pictures: answer.data.map((each) => each.b64_json),
    fetched: fetched.toString("base64"),
    last: events.at(-1),
    failures,
  }),
);
