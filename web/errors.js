import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

// ComfyUI repeats the answer of a node's validation at every input that the validation reads. An answer that begins with
// the name of an input is left at that input alone.

app.registerExtension({
    name: "ultragen.errors",
    setup() {
        const queuePrompt = api.queuePrompt;
        api.queuePrompt = async function () {
            try {
                const queued = await queuePrompt.apply(this, arguments);
                leaveAtTheirInputs(queued?.node_errors);
                return queued;
            } catch (refused) {
                leaveAtTheirInputs(refused?.response?.node_errors);
                throw refused;
            }
        };
    },
});

function leaveAtTheirInputs(nodeErrors) {
    for (const node of Object.values(nodeErrors ?? {})) {
        if (!node.class_type?.startsWith("UltraGen")) continue;
        const answers = node.errors.filter(({ type }) => type === "custom_validation_failed");
        const own = answers.filter(beginsWithItsInput);
        if (own.length) node.errors = node.errors.filter((error) => own.includes(error) || !answers.includes(error));
    }
}

// details: "INPUT - ANSWER". What every node checks begins with the node's name.
function beginsWithItsInput({ details, extra_info }) {
    const name = extra_info?.input_name;
    return new RegExp(`^${name} - (UltraGen [^:]+: )?${name}\\b`).test(details);
}
