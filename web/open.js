import { app } from "../../scripts/app.js";
import { readTags } from "./matroska.js";

// ComfyUI opens workflows from .mp4 and .webm, not from .mkv. This opens the workflow of an .mkv as .json.

app.registerExtension({
    name: "ultragen.open",
    setup() {
        const handleFile = app.handleFile;
        app.handleFile = async function (file, ...more) {
            return handleFile.call(this, (await workflowOf(file)) ?? file, ...more);
        };
        const chooser = document.getElementById("comfy-file-input"); // Workflow > Open
        if (chooser?.accept) chooser.accept += ",.mkv";
    },
});

async function workflowOf(file) {
    if (!/\.mkv$/i.test(file?.name ?? "")) return null;
    const { workflow, prompt } = await readTags(file, ["workflow", "prompt"]).catch(() => ({}));
    const text = [workflow, prompt].find(isJson);
    return text && new File([text], file.name.replace(/mkv$/i, "json"), { type: "application/json" });
}

function isJson(text) {
    try {
        return JSON.parse(text) instanceof Object;
    } catch {
        return false;
    }
}
