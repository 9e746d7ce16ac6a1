//! Kinds of projectors: which builds know them, and which tensors of a file the loader asks for
//! (`tools/mtmd/clip.cpp:clip_model_loader::load_tensors`). What it does not ask for is never loaded.

use crate::engine::llama_cpp::build::Build;
use crate::projector::{Modality, ProjectorTower};

/// Tensors of the layers of every kind that has layers of the usual sort.
const LAYER: &str = "attn_k.* attn_q.* attn_v.* attn_out.* attn_qkv.* attn_k_norm.weight attn_q_norm.weight ln1.* ln2.* \
    ls1.weight ls2.weight out_scale.weight attn_post_norm.weight ffn_post_norm.weight ffn_gate_inp.weight \
    ffn_gate_exps.weight ffn_up_exps.weight ffn_down_exps.weight exp_probs_b.weight ffn_up.* ffn_gate.* ffn_down.* attn_sinks";

/// Tensors outside layers that every kind takes where the file has them. Those of patches are named for images whatever the
/// tower, so that a tower for sound beside one for images loads them again.
const AROUND: &str = "v.class_embd {p}.pre_ln.* {p}.post_ln.* v.patch_embd.* v.patch_embd.weight.1 v.norm_embd.* \
    {p}.position_embd.weight";

/// What b12032 added to them.
const LAYER_SINCE_B12032: &str = "conv2d_in_proj.weight conv2d_spatial.weight conv2d_out_proj.weight";
const AROUND_SINCE_B12032: &str = "{p}.embedding_norm.weight";

/// Kinds with the tensors that are their own: `*` stands for weight or bias, `#` for any number, `{p}` for the tower's letter.
#[rustfmt::skip]
const KINDS: &[(&[&str], &str)] = &[
    (&["mlp"],
     "mm.0.* mm.1.* mm.2.* mm.3.* mm.4.* v.image_newline"),
    (&["ldp"],
     "mm.model.mlp.1.* mm.model.mlp.3.* mm.model.mb_block.1.block.0.0.weight \
      mm.model.mb_block.1.block.0.1.* mm.model.mb_block.1.block.1.fc1.* mm.model.mb_block.1.block.1.fc2.* \
      mm.model.mb_block.1.block.2.0.weight mm.model.mb_block.1.block.2.1.* \
      mm.model.mb_block.2.block.0.0.weight mm.model.mb_block.2.block.0.1.* \
      mm.model.mb_block.2.block.1.fc1.* mm.model.mb_block.2.block.1.fc2.* \
      mm.model.mb_block.2.block.2.0.weight mm.model.mb_block.2.block.2.1.*"),
    (&["ldpv2"],
     "mm.model.mlp.0.* mm.model.mlp.2.* mm.model.peg.0.*"),
    (&["resampler"],
     "resampler.pos_embed_k resampler.query resampler.proj.weight resampler.kv.weight resampler.attn.q.* \
      resampler.attn.k.* resampler.attn.v.* resampler.attn.out.* resampler.ln_q.* resampler.ln_kv.* \
      resampler.ln_post.*"),
    (&["minicpmv4_6", "minicpm_ocr_1_0"],
     "v.vit_merger.ln1.* v.vit_merger.attn_q.* v.vit_merger.attn_k.* v.vit_merger.attn_v.* \
      v.vit_merger.attn_out.* v.vit_merger.ds_ln.* v.vit_merger.ds_ffn_up.* v.vit_merger.ds_ffn_down.* \
      mm.input_norm.* mm.up.* mm.down.*"),
    (&["minicpmv4_7"],
     "v.vit_merger.ln1.* v.vit_merger.attn_q.* v.vit_merger.attn_k.* v.vit_merger.attn_v.* \
      v.vit_merger.attn_out.* v.vit_merger.ds_ln.* v.vit_merger.ds_ffn_up.* v.vit_merger.ds_ffn_down.* \
      mm.input_norm.* mm.up.* mm.down.* v.tok_embd_sep"),
    (&["adapter"],
     "adapter.conv.* adapter.linear.linear.weight adapter.linear.norm1.* \
      adapter.linear.dense_h_to_4h.weight adapter.linear.gate.weight adapter.linear.dense_4h_to_h.weight \
      adapter.boi adapter.eoi"),
    (&["qwen2vl_merger", "qwen2.5vl_merger", "exaone4_5", "qwen3vl_merger", "mimovl", "phi4"],
     "mm.0.* mm.2.*"),
    (&["lfm3vl", "ling3vl"],
     "mm.input_norm.* mm.0.* mm.2.*"),
    (&["minimax_m3"],
     "mm.1.* mm.2.* mm.merger.fc1.* mm.merger.fc2.*"),
    (&["muse-spark-audio"],
     "a.patch.#.* a.patch.#.norm.weight a.conv1d.#.* a.conv1d.#.norm.weight a.blk.#.ffn_up.* \
      a.blk.#.ffn_down.* mm.a.fc.*"),
    (&["muse-glimmer"],
     "mm.0.weight mm.1.weight mm.2.weight"),
    (&["step3vl"],
     "mm.0.* mm.1.* mm.model.fc.weight"),
    (&["youtuvl"],
     "mm.input_norm.weight mm.0.* mm.2.*"),
    (&["yasa2"],
     "v.patch_ln.* v.backbone_ln.* v.vision_pos_embed mm.0.* mm.2.* v.stage.#.down.ln.* \
      v.stage.#.down.conv.* v.stage.#.blk.#.dw.* v.stage.#.blk.#.ln.* v.stage.#.blk.#.pw1.* \
      v.stage.#.blk.#.grn.* v.stage.#.blk.#.pw2.*"),
    (&["glm4v", "glm5v"],
     "mm.model.fc.weight mm.up.* mm.gate.* mm.down.* mm.post_norm.* mm.patch_merger.*"),
    (&["gemma3"],
     "mm.input_projection.weight mm.soft_emb_norm.weight"),
    (&["gemma4v"],
     "mm.input_projection.weight v.std_bias v.std_scale"),
    (&["gemma4uv"],
     "mm.input_projection.weight v.patch_norm.1.* v.patch_norm.2.* v.patch_norm.3.*"),
    (&["gemma3nv"],
     "v.conv_stem.conv.* v.conv_stem.bn.weight v.msfa.ffn.pw_exp.conv.weight v.msfa.ffn.pw_exp.bn.weight \
      v.msfa.ffn.pw_proj.conv.weight v.msfa.ffn.pw_proj.bn.weight v.msfa.norm.weight \
      v.blk.#.#.conv_exp.weight v.blk.#.#.bn1.weight v.blk.#.#.conv_pwl.weight v.blk.#.#.bn2.weight \
      v.blk.#.#.dw_start.conv.weight v.blk.#.#.pw_exp.conv.weight v.blk.#.#.dw_start.bn.weight \
      v.blk.#.#.pw_exp.bn.weight v.blk.#.#.dw_mid.conv.weight v.blk.#.#.dw_mid.bn.weight \
      v.blk.#.#.pw_proj.conv.weight v.blk.#.#.pw_proj.bn.weight v.blk.#.#.layer_scale.gamma \
      v.blk.#.#.attn.query.proj.weight v.blk.#.#.attn.key.proj.weight v.blk.#.#.attn.value.proj.weight \
      v.blk.#.#.attn.output.proj.weight v.blk.#.#.attn.key.down_conv.weight v.blk.#.#.attn.key.norm.weight \
      v.blk.#.#.attn.value.down_conv.weight v.blk.#.#.attn.value.norm.weight v.blk.#.#.norm.weight \
      mm.input_projection.weight mm.soft_emb_norm.weight"),
    (&["idefics3"],
     "mm.model.fc.weight"),
    (&["cohere2v"],
     "mm.1.* mm.2.*"),
    (&["lfm2", "d1omni_v", "kimivl", "paddleocr", "kimik25"],
     "mm.input_norm.* mm.1.* mm.2.*"),
    (&["deepseek4v"],
     "mm.1.* mm.2.* v.image_newline v.token_embd.img_start v.token_embd.img_end v.token_embd.img_pad"),
    (&["deepseek41v"],
     "mm.1.* mm.2.* v.image_newline v.token_embd.img_start v.token_embd.img_end"),
    (&["pixtral"],
     "mm.1.* mm.2.* v.token_embd.img_break mm.input_norm.weight mm.patch_merger.weight"),
    (&["lightonocr"],
     "mm.1.* mm.2.* mm.input_norm.weight mm.patch_merger.weight"),
    (&["dots_ocr", "dots3note_v"],
     "mm.0.* mm.2.* mm.input_norm.* mm.post_norm.weight"),
    (&["dots3note_a"],
     "a.conv2d.1.* a.conv2d.2.* a.conv2d.3.* a.conv_out.weight mm.a.norm_pre.* mm.a.mlp.1.* mm.a.mlp.3.*"),
    (&["ultravox"],
     "a.conv1d.1.* a.conv1d.2.* mm.a.mlp.1.weight mm.a.mlp.2.weight mm.a.norm_pre.weight \
      mm.a.norm_mid.weight"),
    (&["meralion"],
     "a.conv1d.1.* a.conv1d.2.* mm.a.mlp.0.* mm.a.mlp.1.* mm.a.mlp.2.* mm.a.mlp.3.* mm.a.norm_pre.*"),
    (&["qwen2a"],
     "a.conv1d.1.* a.conv1d.2.* mm.a.fc.*"),
    (&["qwen3a"],
     "a.conv2d.1.* a.conv2d.2.* a.conv2d.3.* a.conv_out.weight mm.a.mlp.1.* mm.a.mlp.2.*"),
    (&["mimo_audio"],
     "a.conv1d.1.* a.conv1d.2.* a.downsample.conv.weight a.downsample.norm.* a.rvq.codebook.weight \
      mm.a.code_embd.weight mm.a.local_blk.#.attn_q.* mm.a.local_blk.#.attn_k.* mm.a.local_blk.#.attn_v.* \
      mm.a.local_blk.#.attn_out.weight mm.a.local_blk.#.ffn_gate.weight mm.a.local_blk.#.ffn_up.weight \
      mm.a.local_blk.#.ffn_down.weight mm.a.local_blk.#.ln1.weight mm.a.local_blk.#.ln2.weight \
      mm.a.local_norm.weight mm.a.mlp.1.weight mm.a.mlp.2.weight"),
    (&["voxtral", "voxtral_rt"],
     "a.conv1d.1.* a.conv1d.2.* mm.a.mlp.1.weight mm.a.mlp.2.weight"),
    (&["musicflamingo"],
     "a.conv1d.1.* a.conv1d.2.* mm.a.mlp.1.* mm.a.mlp.2.*"),
    (&["internvl"],
     "mm.model.mlp.0.* mm.model.mlp.1.* mm.model.mlp.3.*"),
    (&["nemotron_v2_vl", "nemotron_omni"],
     "mm.model.mlp.0.weight mm.model.mlp.1.weight mm.model.mlp.3.weight"),
    (&["glma"],
     "a.conv1d.1.* a.conv1d.2.* mm.a.mlp.1.* mm.a.mlp.2.* mm.a.norm_pre.* v.boi v.eoi"),
    (&["llama4"],
     "mm.model.fc.weight mm.model.mlp.1.weight mm.model.mlp.2.weight"),
    (&["cogvlm"],
     "mm.model.fc.weight mm.post_fc_norm.* mm.up.weight mm.gate.weight mm.down.weight v.boi v.eoi"),
    (&["hunyuanvl"],
     "mm.0.* mm.2.* mm.model.fc.* mm.pre_norm.weight mm.post_norm.weight mm.image_begin mm.image_end \
      v.image_newline v.view_seperator"),
    (&["janus_pro"],
     "mm.0.* mm.1.*"),
    (&["deepseekocr", "deepseekocr2"],
     "v.sam.pos_embd.weight v.sam.patch_embd.* v.sam.blk.#.attn.qkv.* v.sam.blk.#.attn.out.* \
      v.sam.blk.#.pre_ln.* v.sam.blk.#.post_ln.* v.sam.blk.#.attn.pos_h.weight \
      v.sam.blk.#.attn.pos_w.weight v.sam.blk.#.mlp.lin1.* v.sam.blk.#.mlp.lin2.* v.sam.neck.0.weight \
      v.sam.neck.1.* v.sam.neck.2.weight v.sam.neck.3.* v.sam.net_2.weight v.sam.net_3.weight \
      v.image_newline v.view_seperator mm.model.fc.* v.resample_query_768.weight \
      v.resample_query_1024.weight"),
    (&["gemma4a"],
     "a.conv1d.#.* a.conv1d.#.norm.weight a.input_projection.* a.pre_encode.out.* \
      mm.a.soft_emb_norm.weight mm.a.input_projection.weight {p}.blk.#.ffn_norm.weight \
      {p}.blk.#.attn_pre_norm.weight {p}.blk.#.per_dim_scale.weight {p}.blk.#.per_dim_k_scale.weight \
      {p}.blk.#.attn_k_rel.weight {p}.blk.#.conv_norm.* {p}.blk.#.conv_pw1.* {p}.blk.#.conv_dw.* \
      {p}.blk.#.norm_conv.* {p}.blk.#.conv_pw2.* {p}.blk.#.ffn_norm_1.weight {p}.blk.#.ffn_up_1.* \
      {p}.blk.#.ffn_down_1.* {p}.blk.#.ffn_post_norm_1.weight"),
    (&["gemma4ua"],
     "mm.a.input_projection.weight"),
    (&["lfm2a"],
     "a.conv1d.#.* a.pre_encode.out.* mm.a.mlp.0.* mm.a.mlp.1.* mm.a.mlp.3.* {p}.blk.#.ffn_norm.* \
      {p}.blk.#.ffn_norm_1.* {p}.blk.#.ffn_up_1.* {p}.blk.#.ffn_down_1.* {p}.blk.#.pos_bias_u \
      {p}.blk.#.pos_bias_v {p}.blk.#.norm_conv.* {p}.blk.#.linear_pos.weight {p}.blk.#.conv_norm.* \
      {p}.blk.#.conv_dw.* {p}.blk.#.conv_pw1.* {p}.blk.#.conv_pw2.*"),
    (&["d1omni_a"],
     "a.conv1d.#.* a.pre_encode.out.* mm.a.mlp.0.* mm.a.mlp.1.* mm.a.mlp.3.* mm.a.mlp.4.* mm.a.mlp.5.* \
      mm.a.mlp.6.* {p}.blk.#.ffn_norm.* {p}.blk.#.ffn_norm_1.* {p}.blk.#.ffn_up_1.* {p}.blk.#.ffn_down_1.* \
      {p}.blk.#.pos_bias_u {p}.blk.#.pos_bias_v {p}.blk.#.norm_conv.* {p}.blk.#.linear_pos.weight \
      {p}.blk.#.conv_norm.* {p}.blk.#.conv_dw.* {p}.blk.#.conv_pw1.* {p}.blk.#.conv_pw2.*"),
    (&["lfm3a"],
     "a.conv1d.#.* a.pre_encode.out.* mm.a.mlp.0.* mm.a.mlp.1.* mm.a.mlp.3.* {p}.blk.#.conv_pw1.weight \
      {p}.blk.#.conv_dw.weight {p}.blk.#.conv_pw2.weight"),
    (&["parakeet"],
     "a.conv1d.#.* a.pre_encode.out.* mm.a.norm_pre.weight mm.a.mlp.1.weight mm.a.mlp.2.weight \
      {p}.blk.#.linear_pos.weight {p}.blk.#.pos_bias_u {p}.blk.#.pos_bias_v {p}.blk.#.conv_pw1.* \
      {p}.blk.#.conv_dw.* {p}.blk.#.conv_norm.* {p}.blk.#.conv_norm_mean {p}.blk.#.conv_norm_var \
      {p}.blk.#.conv_pw2.* {p}.blk.#.ffn_norm.* {p}.blk.#.ffn_norm_1.* {p}.blk.#.ffn_up_1.* \
      {p}.blk.#.ffn_down_1.* {p}.blk.#.norm_conv.* mm.model.mlp.0.weight mm.model.mlp.1.weight \
      mm.model.mlp.3.weight"),
    (&["granite_speech"],
     "a.input_projection.* a.enc_ctc_out.* a.enc_ctc_out_mid.* {p}.blk.#.attn_rel_pos_emb \
      {p}.blk.#.ffn_norm.* {p}.blk.#.ffn_norm_1.* {p}.blk.#.ffn_up_1.* {p}.blk.#.ffn_down_1.* \
      {p}.blk.#.norm_conv.* {p}.blk.#.conv_norm.* {p}.blk.#.conv_dw.weight {p}.blk.#.conv_pw1.* \
      {p}.blk.#.conv_pw2.* {p}.proj_query {p}.proj_norm.* {p}.proj_linear.* {p}.proj_blk.#.self_attn_q.* \
      {p}.proj_blk.#.self_attn_k.* {p}.proj_blk.#.self_attn_v.* {p}.proj_blk.#.self_attn_out.* \
      {p}.proj_blk.#.self_attn_norm.* {p}.proj_blk.#.cross_attn_q.* {p}.proj_blk.#.cross_attn_k.* \
      {p}.proj_blk.#.cross_attn_v.* {p}.proj_blk.#.cross_attn_out.* {p}.proj_blk.#.cross_attn_norm.* \
      {p}.proj_blk.#.ffn_up.* {p}.proj_blk.#.ffn_down.* {p}.proj_blk.#.ffn_norm.*"),
    (&["granite4_vision"],
     "v.image_newline v.proj_blk.#.img_pos {p}.proj_blk.#.query {p}.proj_blk.#.linear.* \
      {p}.proj_blk.#.norm.* {p}.proj_blk.#.post_norm.* {p}.proj_blk.#.self_attn_q.* \
      {p}.proj_blk.#.self_attn_k.* {p}.proj_blk.#.self_attn_v.* {p}.proj_blk.#.self_attn_out.* \
      {p}.proj_blk.#.self_attn_norm.* {p}.proj_blk.#.cross_attn_q.* {p}.proj_blk.#.cross_attn_k.* \
      {p}.proj_blk.#.cross_attn_v.* {p}.proj_blk.#.cross_attn_out.* {p}.proj_blk.#.cross_attn_norm.* \
      {p}.proj_blk.#.ffn_up.* {p}.proj_blk.#.ffn_down.* {p}.proj_blk.#.ffn_norm.*"),
    (&["sensenova_u1"],
     "mm.0.*"),
];

/// Kinds that b12032 was the first to know.
const SINCE_B12032: &[&str] = &[
    "minicpmv4_7",
    "minicpm_ocr_1_0",
    "lfm3vl",
    "muse-spark-audio",
    "cohere2v",
    "d1omni_v",
    "deepseek41v",
    "voxtral_rt",
    "nemotron_omni",
    "d1omni_a",
    "lfm3a",
    "sensenova_u1",
];

/// Kinds that v0.5.0 does not know.
const SINCE_0C1E57098: &[&str] = &["ling3vl", "glm5v"];

/// Whether a build knows a kind.
fn knows(build: Build, name: &str) -> bool {
    match build {
        Build::V0_5_0 => !SINCE_B12032.contains(&name) && !SINCE_0C1E57098.contains(&name),
        Build::C0c1e57098 => !SINCE_B12032.contains(&name),
        Build::B12032 => true,
    }
}

/// A kind of projector that a build knows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    /// Its name; two old names for one file's two towers stand for the kinds that they mean.
    pub(super) name: &'static str,
    own: &'static str,
}

impl Kind {
    /// `None` where the build knows no such kind, or its loader is not followed.
    pub(super) fn of(tower: &ProjectorTower, build: Build) -> Option<Self> {
        // `clip.cpp:load_hparams`: one word for the tower of images and that of sound.
        let name = match (tower.kind.as_str(), tower.modality) {
            ("qwen2.5o", Modality::Vision) => "qwen2.5vl_merger",
            ("qwen2.5o", _) => "qwen2a",
            (name, _) => name,
        };
        if !knows(build, name) {
            return None;
        }
        KINDS.iter().find_map(|(names, own)| {
            let name = names.iter().find(|known| **known == name)?;
            Some(Self { name, own })
        })
    }

    /// Kinds that are followed in a build.
    pub(super) fn all(build: Build) -> impl Iterator<Item = &'static str> {
        KINDS.iter().flat_map(|(names, _)| names.iter().copied()).filter(move |name| knows(build, name))
    }

    /// Whether the loader takes the tensor of this name for the tower.
    pub(super) fn loads(self, tower: &ProjectorTower, name: &str, build: Build) -> bool {
        let prefix = match tower.modality {
            Modality::Vision => "v",
            Modality::Audio => "a",
            Modality::Speech => "a.gen.code",
        };
        let newer = build >= Build::B12032;
        let in_layer = |list: &str, stem: &str| {
            let Some((index, rest)) = name.strip_prefix(stem).and_then(|rest| rest.split_once('.')) else { return false };
            index.parse::<u64>().is_ok_and(|index| index < tower.layers) && listed(list, prefix, rest)
        };
        let blocks = match prefix {
            "v" => "v.blk.",
            "a" => "a.blk.",
            _ => "a.gen.code.blk.",
        };
        // Towers without layers of the usual sort (`has_standard_layers`).
        let usual = !matches!(self.name, "gemma3nv" | "muse-spark-audio");
        listed(AROUND, prefix, name)
            || newer && listed(AROUND_SINCE_B12032, prefix, name)
            || usual && (in_layer(LAYER, blocks) || newer && in_layer(LAYER_SINCE_B12032, blocks))
            || usual && in_layer("norm.* fc1.* fc2.*", "v.deepstack.")
            || listed(self.own, prefix, name)
    }
}

/// Whether a list of patterns has one that fits a name.
fn listed(list: &str, prefix: &str, name: &str) -> bool {
    list.split_ascii_whitespace().any(|pattern| fits(pattern, prefix, name))
}

fn fits(pattern: &str, prefix: &str, name: &str) -> bool {
    let (pattern, name) = match (pattern.strip_prefix("{p}"), name.strip_prefix(prefix)) {
        (Some(pattern), Some(name)) => (pattern, name),
        (Some(_), None) => return false,
        (None, _) => (pattern, name),
    };
    let (mut parts, mut words) = (pattern.split('.'), name.split('.'));
    loop {
        match (parts.next(), words.next()) {
            (None, None) => return true,
            (Some("*"), Some("weight" | "bias")) => {}
            (Some("#"), Some(word)) if word.parse::<u32>().is_ok() => {}
            (Some(part), Some(word)) if part == word => {}
            _ => return false,
        }
    }
}
