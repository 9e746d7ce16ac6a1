// Asks node-llama-cpp's two estimators about each file named on the command line: the closed formula, and the newer one
// that runs the engine's own simulation. One line of JSON for each.
//
//   node peers.mjs MODULE CONTEXT FILE...
import {pathToFileURL} from "node:url";

const [modulePath, context, ...files] = process.argv.slice(2);
const {readGgufFileInfo, GgufInsights} = await import(pathToFileURL(modulePath).href);
const setting = {contextSize: Number(context), modelGpuLayers: 0, batchSize: 512, sequences: 1};
const loading = {gpuLayers: 0, useMmap: false};

async function timed(ask) {
    const start = performance.now();
    try {
        const [model, session] = await ask();
        return {bytes: Math.round(model.cpuRam + session.cpuRam), ms: performance.now() - start};
    } catch (error) {
        return {error: String(error?.message ?? error).split("\n")[0]};
    }
}

let warm = false;
for (const file of files) {
    const info = await readGgufFileInfo(file, {logWarnings: false});
    const insights = await GgufInsights.from(info);
    const ask = {
        formula: async () => [
            insights.estimateModelResourceRequirements(loading),
            insights.estimateContextResourceRequirements({...setting, flashAttention: true})
        ],
        simulation: async () => [
            await insights.estimateModelResourceRequirementsV2(loading),
            await insights.estimateContextResourceRequirementsV2({...setting, flashAttention: "auto", useMmap: false})
        ]
    };
    if (!warm) {
        // The first question also loads the engine.
        await timed(ask.formula);
        warm = true;
    }
    console.log(JSON.stringify({file, formula: await timed(ask.formula), simulation: await timed(ask.simulation)}));
}
process.exit(0);
