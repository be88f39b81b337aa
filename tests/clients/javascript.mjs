// What `test_javascript.py` asks with the clients that JavaScript programs have; prints one JSON object of what came back.
import OpenAI from 'openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateObject, generateText, streamText } from 'ai';
import { z } from 'zod';

const [address, model, task, prompt] = process.argv.slice(2);
const baseURL = `${address}/v1`;
const openai = new OpenAI({ baseURL, apiKey: 'none', maxRetries: 0 });
const vercel = createOpenAICompatible({ name: 'mera', baseURL, apiKey: 'none', includeUsage: true, supportsStructuredOutputs: true });
const messages = [{ role: 'user', content: prompt }];
const long = [{ role: 'user', content: 'x '.repeat(1500) }];
const chat = (more) => openai.chat.completions.create({ model, messages, max_tokens: 2, ...more });
const ask = (more) => ({ model: vercel(model), prompt, maxOutputTokens: 2, maxRetries: 0, ...more });

async function joined(stream, textOf) {
  let text = '';
  for await (const part of stream) text += textOf(part) ?? '';
  return text;
}

async function failure(promise) {
  try {
    await promise;
    return null;
  } catch (error) {
    return { kind: error.constructor.name, status: error.status ?? error.statusCode, code: error.code, param: error.param };
  }
}

async function cancelled() {
  const caller = new AbortController();
  const body = { model, prompt: 'Message:', max_tokens: 900, stream: true };
  let count = 0;
  try {
    for await (const _ of await openai.completions.create(body, { signal: caller.signal })) if (++count === 3) caller.abort();
  } catch (error) {
    if (error.constructor.name !== 'APIUserAbortError') throw error;
  }
  return count;
}

const streamed = streamText(ask({}));
const found = {
  plain: (await chat({})).choices[0].message.content,
  stream: await joined(await chat({ stream: true }), (chunk) => chunk.choices[0]?.delta?.content),
  completion: (await openai.completions.create({ model, prompt, max_tokens: 2 })).choices[0].text,
  several: (await chat({ n: 3, temperature: 1 })).choices.length,
  stop: (await chat({ stop: ['a'] })).choices[0],
  token: (await chat({ max_tokens: 1, logprobs: true })).choices[0].logprobs.content[0].token,
  models: (await openai.models.list()).data.map((each) => each.id),
  wrong: await failure(chat({ temperature: -1 })),
  tooLong: await failure(chat({ messages: long })),
  unknown: await failure(chat({ model: 'nothing' })),
  cancelled: await cancelled(),
  vercelPlain: (await generateText(ask({}))).text,
  vercelStream: await joined(streamed.textStream, (text) => text),
  vercelUsage: (await streamed.usage).outputTokens,
  vercelFinish: await streamed.finishReason,
  vercelCompletion: (await generateText(ask({ model: vercel.completionModel(model) }))).text,
  vercelObject: (await generateObject({ model: vercel(task), prompt, maxRetries: 0, schema: z.object({ label: z.enum(['ham', 'spam']) }) })).object,
  vercelWrong: await failure(generateText(ask({ temperature: -1 }))),
};
console.log(JSON.stringify(found));
