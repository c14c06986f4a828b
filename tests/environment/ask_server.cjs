// Ask a server with OpenAI's client for Node, and print what it gives.
// Standard input: {"url": …, "model": …, "texts": […], "bad": [input, …]}. NODE_PATH names the folder of the package.

const fs = require("node:fs");
const OpenAI = require("openai");

async function main() {
  const request = JSON.parse(fs.readFileSync(0, "utf8"));
  const client = new OpenAI({ baseURL: `${request.url}/v1`, apiKey: "none", maxRetries: 0 });
  const ask = async (input, more = {}) => {
    const answer = await client.embeddings.create({ model: request.model, input, ...more });
    return answer.data.map((item) => item.embedding);
  };
  const refusals = [];
  for (const input of request.bad) {
    try {
      await ask(input);
    } catch (error) {
      const { status, param, code, message } = error;
      refusals.push({ kind: error.constructor.name, status, param, code, message });
    }
  }
  const found = { by_itself: await ask(request.texts), float: await ask(request.texts, { encoding_format: "float" }) };
  console.log(JSON.stringify({ ...found, refusals }));
}

main();
