// node encode.mjs BUNDLE [VARIANT] < texts.json
// Standard input is a JSON array of texts; a line of output is what `m3-runtime encode --heads dense,sparse,colbert` gives.

import { readFileSync } from "node:fs";
import { M3Bundle } from "./bge-m3.mjs";

const [folder, variant] = process.argv.slice(2);
const bundle = await M3Bundle.open(folder, { variant });
const encodings = await bundle.encode(JSON.parse(readFileSync(0, "utf8")));
encodings.forEach(({ tokens, truncated, denseVecs, lexicalWeights, colbertVecs }, place) => {
  const line = { id: String(place + 1), tokens, dense_vecs: [...denseVecs], lexical_weights: lexicalWeights };
  if (truncated) console.error(`text ${place + 1} was longer than the model takes and was cut`);
  console.log(JSON.stringify({ ...line, colbert_vecs: colbertVecs?.map((row) => [...row]) }));
});
await bundle.close();
