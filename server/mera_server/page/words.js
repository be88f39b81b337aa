// What the server reports, in words. Points are said only where the bound allows them.

const METHODS = {
  "mera": ["MERA", "The artifact’s step where the predicted error exceeds α, and none where it does not."],
  "additive": ["additive", "A step of fixed strength along the probe, at every token."],
  "contrastive": ["contrastive", "A step of fixed strength along the difference of means, at every token."],
  "logit_bias": ["logit bias", "The labels are weighted where the answer is chosen; nothing is moved."],
  "mera+bias": ["MERA + logit bias", "MERA’s step, and the labels weighted where the answer is chosen."],
  "label_probe": ["label probe", "Where the predicted error exceeds α the label is the one that a probe reads off the activations; nothing is moved."],
  "none": ["none", ""],
};
const DECISIONS = { steered: "Steered", not_needed: "Not needed", abstained: "Abstained", off: "Off" };
const TESTS = { mcnemar: "the exact one-sided McNemar test", betting: "the betting test" };
const REASONS = {
  uncertified: "No candidate passed its test on the calibration data, so the model is left as it is and the probe only watches. " +
    "With an α given above, it is steered all the same, without a guarantee.",
  no_probe: "The store holds no probe for this task and model, so there is nothing to steer by.",
  disabled: "The server was started with steering off.",
  conditions: "The artifact was certified under other conditions than this server’s, or the model does not behave as it did when it was tested.",
  collapse: "A gain was measured, but it came from answering with fewer labels: that is no repair.",
  other_prompt: "The prompt is not the server’s default task’s, so it is left alone. Name the task to have it steered.",
};

const points = (gain) => `${gain < 0 ? "−" : "+"}${Math.abs(100 * gain).toFixed(1)} points`;
const certainty = (tested) => `probability ${Number((100 * (1 - (tested.level ?? tested.delta))).toFixed(2))} %`;
/** Whether points may be said of what was tested. */
const pointsAllowed = (tested) => tested.lower_bound !== null && tested.lower_bound > tested.epsilon;

/** The promise of a certificate. */
function promise(tested) {
  if (!pointsAllowed(tested)) return `better than not steering, with ${certainty(tested)}`;
  return `at least ${points(tested.lower_bound)} of accuracy over not steering, with ${certainty(tested)} ` +
    `(${points(tested.gain)} measured on ${tested.n} items)`;
}

/** Why the model was moved, or was not. */
function decisionWords(mera) {
  if (mera.decision === "abstained") return REASONS[mera.reason] ?? "";
  if (mera.decision === "off") return "As asked, nothing was steered.";
  const { tokens, steered_tokens: moved, cells, steered_cells: movedCells, mean_shift: mean } = mera.steering;
  const bias = mera.method.includes("bias") ? " The labels were weighted where the answer was chosen." : "";
  if (mera.answer?.by === "label_probe") {
    const same = mera.decision === "not_needed" ? "which is what the model says" : "which is not what the model says";
    return `The predicted error was above α = ${alphaShort(mera.alpha)}: the label is the one that a probe reads off the activations, ${same}. No activation was moved.`;
  }
  if (mera.decision === "not_needed") return `The predicted error was never above α = ${alphaShort(mera.alpha)}: nothing had to be moved.`;
  if (movedCells === 0) return `No activation was moved.${bias}`;
  const aim = mera.alpha === null ? "" : `, the predicted error being above α = ${alphaShort(mera.alpha)}`;
  return `At ${moved} of ${tokens} positions something was moved${aim}: ${movedCells} of ${cells} cells, ` +
    `on average by ${short(mean)} of their length.${bias}`;
}

/** What the probe read where the answer was chosen. */
function errorWords(read) {
  if (!read) return "No predicted error: nothing was read.";
  const place = read.position === "answer" ? "at the answer" : "at the prompt’s last token";
  const same = short(read.before) === short(read.after);
  return `Predicted error ${place}, layer ${read.layer}: ${same ? short(read.before) : `${short(read.before)} before, ${short(read.after)} after`}.`;
}

function guaranteeWords(guarantee) {
  if (!guarantee) return "No certificate.";
  if (!guarantee.certified) return `Not covered by a certificate: ${guarantee.why}.`;
  return `Covered by the certificate: ${promise(guarantee)}. It speaks of the average, not of this one answer.`;
}

/** A problem, with what one can do about it. */
function problemWords(problem) {
  const said = problem.message ? ` The server says: ${problem.message}.` : "";
  const wait = problem.retryAfter ? `in ${problem.retryAfter} s` : "in a moment";
  switch (problem.status) {
    case 0: return "The server cannot be reached. Is it running?";
    case 401: return key.get() ? "The server does not know this API key (401). Give another one." : "This server wants an API key (401). Give it in the field “API key”.";
    case 403: return `This key may not do that (403).${said}`;
    case 429: {
      const why = problem.code === "rate_limited" ? "More is asked than is allowed" : "The server has no room just now";
      return `${why} (429). Try again ${wait}.${said}`;
    }
    case 503: return `The server is not ready (503). Try again ${wait}.${said}`;
    default: return `Refused (${problem.status}, ${problem.code}).${said}`;
  }
}

/** How generation ended. */
function endWords(details) {
  const ends = { length: "the limit of tokens", eos_token: "the model’s end token", stop_sequence: "a stop string" };
  const one = details.generated_tokens === 1;
  return `${details.generated_tokens} ${one ? "token" : "tokens"} behind a prompt of ${details.prompt_tokens}, ended by ${ends[details.finish_reason]}` +
    `${details.seed === null ? "" : `, seed ${details.seed}`}.`;
}
