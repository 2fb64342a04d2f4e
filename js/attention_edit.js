// What the pack's remarks and errors look like in the front end. All texts are shown as text, none as HTML.
//
// Remarks: the host's progress text holds the words on the node. Here the node gets a coloured frame, and both come
// back when the page is loaded anew, until the node is executed again. They are kept in this browser, by workflow.
//
// Errors: a toast with the error's own sentence, whose beginning says what to do.

import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"

const NAME = "attention-edit"
const PACK = new URL(import.meta.url).pathname.split("/").at(-2)
const COLOURS = { "not honoured": "#e8590c", "likely to disappoint": "#f0b429" }
const PREVIEW = "$$node-text-preview"

const shelf = () => `${NAME}.remarks.${app.graph?.id ?? ""}`

function kept() {
    try {
        return JSON.parse(localStorage.getItem(shelf()) ?? "{}")
    } catch {
        return {}
    }
}

function keep(all) {
    try {
        localStorage.setItem(shelf(), JSON.stringify(all))
    } catch {
        // A full or closed store: then they last as long as the page.
    }
}

// A node by the host's execution id, such as "5", or "5:3" for node 3 of subgraph node 5.
function nodeOf(id) {
    const [first, ...inner] = String(id).split(":")
    return inner.reduce((node, next) => node?.subgraph?.getNodeById(Number(next)), app.graph?.getNodeById(Number(first)))
}

function colourOf(remarks) {
    return Object.entries(COLOURS).find(([kind]) => remarks.some(([given]) => given === kind))?.[1]
}

function frame(node, remarks) {
    node.attentionEditRemarks = remarks
    const colour = colourOf(remarks)
    node.strokeStyles ??= {}
    node.strokeStyles.attentionEdit = () => (colour ? { color: colour, lineWidth: 3 } : undefined)
    node.setDirtyCanvas?.(true, true)
}

function lines(remarks) {
    return remarks.map(([kind, text]) => (kind in COLOURS ? `${kind}: ${text}` : text)).join("\n")
}

function forget(id) {
    const node = nodeOf(id)
    const all = kept()
    if (id in all) {
        delete all[id]
        keep(all)
    }
    if (!node?.attentionEditRemarks) return
    frame(node, [])
    delete node.attentionEditRemarks
    const at = node.widgets?.findIndex((widget) => widget.name === PREVIEW) ?? -1
    if (at >= 0) {
        node.widgets[at].onRemove?.()
        node.widgets.splice(at, 1)
    }
}

function restore() {
    for (const [id, remarks] of Object.entries(kept())) {
        const node = nodeOf(id)
        if (!node || node.attentionEditRemarks) continue
        frame(node, remarks)
        api.dispatchCustomEvent("progress_text", { nodeId: id, text: lines(remarks) })
    }
}

// Whether an error was raised in the pack: by the last frame of its traceback.
function isOurs(traceback) {
    const frames = (traceback ?? []).flatMap((entry) => entry.split("\n")).filter((line) => line.includes('File "'))
    return (frames.at(-1) ?? "").replaceAll("\\", "/").includes(`/${PACK}/`)
}

app.registerExtension({
    name: "AttentionEdit.Remarks",
    setup() {
        api.addEventListener(`attention_edit.remarks`, ({ detail }) => {
            const node = nodeOf(detail.node)
            if (!node) return
            frame(node, detail.remarks)
            keep({ ...kept(), [detail.node]: detail.remarks })
        })
        api.addEventListener("executing", ({ detail }) => {
            if (detail !== null && detail !== undefined) forget(String(detail))
        })
        api.addEventListener("execution_cached", restore)
        api.addEventListener("execution_error", ({ detail }) => {
            if (!isOurs(detail.traceback)) return
            const node = nodeOf(detail.node_id)
            const summary = `${node?.title ?? detail.node_type}`
            app.extensionManager.toast.add({ severity: "error", summary, detail: detail.exception_message.trim() })
        })
    },
    afterConfigureGraph: restore,
})
