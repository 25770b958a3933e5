//! The readers, one test each.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use grove::beacon::{Beacon, LastSeen};
use grove::checkpoint::{Checkpoint, TensorFile, faults, inventory, survey};
use grove::config::{self, Plan};
use grove::exchange::{Gguf, Source, import};
use grove::model::config::ModelConfig;
use grove_data::{
    BadRecord, BadUtf8, DocumentOptions, EndOfDocument, Format, Progress, Source as Tokens,
    SourceOptions, TextDocuments, TokenFile, TokenWriter, TokenizeOptions, Tokenizer,
    tokenize_corpus,
};

use crate::workplace::Workplace;

/// Ids of the token files.
const VOCAB_SIZE: u32 = 300;

/// Tokens that are read of what could be opened.
const NUM_READ: u64 = 4096;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/exchange").join(name)
}

fn ids() -> Vec<u32> {
    (0..200).map(|i| i * 7 % VOCAB_SIZE).collect()
}

fn u16s(ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|&id| (id as u16).to_le_bytes()).collect()
}

/// Does with token data whatever can be done with it.
fn use_tokens(path: &Path, format: Format) -> bool {
    let options = SourceOptions { format: Some(format), vocab_size: Some(VOCAB_SIZE) };
    let Ok(source) = Tokens::open_with(path, &options) else { return false };
    let mut tokens = vec![0; source.num_tokens().min(NUM_READ) as usize];
    let read = source.read(0, &mut tokens).is_ok();
    let last = source.num_tokens() - 1;
    let _ = (source.fingerprint(), source.place(last), source.document_at(last));
    for document in [0, source.num_documents().unwrap_or(0).saturating_sub(1)] {
        if let Ok(range) = source.document(document)
            && range.start < source.num_tokens()
        {
            source.document_at(range.start);
        }
        let _ = source.origin(document);
    }
    source.verify().is_ok() && read
}

#[test]
fn token_file() {
    let place = Workplace::new();
    let path = place.path("x.tokens");
    let mut writer = TokenWriter::create(&path, VOCAB_SIZE).expect("a writer");
    writer.write(&ids()).expect("tokens");
    writer.finish().expect("a token file");
    place.fuzz("x.tokens", |path| {
        let opened = TokenFile::open(path);
        opened.is_ok_and(|file| file.num_tokens() > 0) && use_tokens(path, Format::TokenFile)
    });
}

#[test]
fn nano_gpt() {
    let place = Workplace::new();
    place.write("x.bin", &u16s(&ids()));
    place.fuzz("x.bin", |path| use_tokens(path, Format::NanoGpt));
}

#[test]
fn llm_c() {
    let place = Workplace::new();
    let mut bytes = vec![0; 1024];
    bytes[..4].copy_from_slice(&20_240_520_u32.to_le_bytes());
    bytes[4..8].copy_from_slice(&1_u32.to_le_bytes());
    bytes[8..12].copy_from_slice(&200_u32.to_le_bytes());
    bytes.extend(u16s(&ids()));
    place.write("x.bin", &bytes);
    place.fuzz("x.bin", |path| use_tokens(path, Format::LlmC));
}

#[test]
fn npy() {
    let place = Workplace::new();
    let header = "{'descr': '<u2', 'fortran_order': False, 'shape': (200,), }".to_owned();
    let header = format!("{header:117}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.bytes());
    bytes.extend(u16s(&ids()));
    place.write("x.npy", &bytes);
    place.fuzz("x.npy", |path| use_tokens(path, Format::Npy));
}

#[test]
fn megatron_index() {
    let place = Workplace::new();
    place.write("x.bin", &u16s(&ids()));
    let mut index = b"MMIDIDX\0\0".to_vec();
    index.extend(1_u64.to_le_bytes());
    index.push(8);
    index.extend(2_u64.to_le_bytes());
    index.extend(3_u64.to_le_bytes());
    [120_i32, 80].iter().for_each(|length| index.extend(length.to_le_bytes()));
    [0_i64, 240, 0, 1, 2].iter().for_each(|number| index.extend(number.to_le_bytes()));
    place.write("x.idx", &index);
    place.fuzz("x.idx", |path| use_tokens(path, Format::Megatron));
}

/// A folder of shards of a small text, and the name of a file in it with this ending.
fn shards(place: &Workplace, ending: &str) -> String {
    let text = place.write("texts/x.txt", b"one line\ntwo lines\nthree lines\n");
    let options = TokenizeOptions {
        inputs: vec![text.display().to_string()],
        out: place.path("shards"),
        documents: DocumentOptions {
            text_documents: TextDocuments::Lines,
            text_field: "text".to_owned(),
            on_bad_utf8: BadUtf8::Fail,
            on_bad_record: BadRecord::Fail,
            score: None,
        },
        end_of_document: EndOfDocument::Id(256),
        deduplicate: false,
        shard_tokens: 1000,
        num_threads: 1,
    };
    let (progress, stop) = (Progress::default(), AtomicBool::new(false));
    tokenize_corpus(&options, &Tokenizer::bytes(), &progress, &stop).expect("shards");
    let entries = fs::read_dir(place.path("shards")).expect("a folder");
    let names = entries.map(|entry| entry.expect("an entry").file_name().into_string());
    let name = names.map(|name| name.expect("a name")).find(|name| name.ends_with(ending));
    format!("shards/{}", name.expect("a file with this ending"))
}

#[test]
fn shards_manifest() {
    let place = Workplace::new();
    let name = shards(&place, "manifest.json");
    place.fuzz(&name, |path| use_tokens(path.parent().expect("a folder"), Format::Shards));
}

#[test]
fn shards_documents() {
    let place = Workplace::new();
    let probe = shards(&place, "manifest.json");
    let manifest = fs::read_to_string(place.path(&probe)).expect("a manifest");
    let manifest: serde_json::Value = serde_json::from_str(&manifest).expect("JSON");
    let name = manifest["shards"][0]["documents"].as_str().expect("a name").to_owned();
    place.fuzz(&format!("shards/{name}"), |path| {
        use_tokens(path.parent().expect("a folder"), Format::Shards)
    });
}

#[test]
fn tiktoken_ranks() {
    let place = Workplace::new();
    // Base64 of each byte, and its rank.
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let line = |byte: usize| {
        let (high, low) = (DIGITS[byte >> 2] as char, DIGITS[(byte & 3) << 4] as char);
        format!("{high}{low}== {byte}\n")
    };
    let text: String = (0..256).map(line).collect();
    place.write("x.tiktoken", text.as_bytes());
    // Refused for its number of ranks, as no known encoding has so few, but read until then.
    place.fuzz("x.tiktoken", |path| {
        let is_read = use_tokenizer(&path.display().to_string());
        assert!(!is_read, "so few ranks are no known encoding");
        true
    });
}

#[test]
fn tokenizer_json() {
    let place = Workplace::new();
    import(&Source::open(&fixture("llama.gguf")).expect("a model"), &place.path("model"))
        .expect("a checkpoint");
    place.fuzz("model/tokenizer.json", |path| use_tokenizer(&path.display().to_string()));
}

fn use_tokenizer(spec: &str) -> bool {
    let Ok(tokenizer) = Tokenizer::from_spec(spec) else { return false };
    tokenizer.encode("some text, 42").is_ok_and(|ids| tokenizer.decode(&ids).is_ok())
}

/// A checkpoint at `model/` in a place of its own.
fn checkpoint() -> Workplace {
    let place = Workplace::new();
    let source = Source::open(&fixture("llama")).expect("a model");
    let folder = place.path("run/checkpoints/step-00000000");
    fs::create_dir_all(folder.parent().expect("a folder")).expect("a folder");
    import(&source, &folder).expect("a checkpoint");
    place
}

/// Does with a run's only checkpoint whatever reads it.
fn use_checkpoint(place: &Workplace) -> bool {
    let (run, folder) = (place.path("run"), place.path("run/checkpoints/step-00000000"));
    let _ = (survey(&run).is_ok(), inventory(&run).is_ok());
    let is_whole = faults(&folder).is_ok_and(|faults| faults.is_empty());
    let _ = Source::open(&folder).is_ok();
    Checkpoint::open(&folder).is_ok() && is_whole
}

#[test]
fn checkpoint_manifest() {
    let place = checkpoint();
    place.fuzz("run/checkpoints/step-00000000/manifest.json", |_| use_checkpoint(&place));
}

#[test]
fn run_state() {
    let place = checkpoint();
    place.fuzz("run/checkpoints/step-00000000/grove/run.json", |_| use_checkpoint(&place));
}

#[test]
fn config_json() {
    let place = Workplace::new();
    for file in ["config.json", "model.safetensors"] {
        place.write(file, &fs::read(fixture("gpt2").join(file)).expect("a fixture"));
    }
    place.fuzz("config.json", |path| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let _ = ModelConfig::from_hf_json(&text).map(|config| config.spec().num_parameters());
        Source::open(path.parent().expect("a folder")).is_ok()
    });
}

#[test]
fn safetensors() {
    let place = Workplace::new();
    for file in ["config.json", "model.safetensors"] {
        place.write(file, &fs::read(fixture("gpt2").join(file)).expect("a fixture"));
    }
    place.fuzz("model.safetensors", |path| {
        let is_one = TensorFile::open_without(path, |_| false).is_ok_and(|file| {
            file.tensors().map(|view| view.bytes.len() + view.spec.len_bytes()).sum::<usize>() > 0
        });
        let opened = Source::open(path.parent().expect("a folder"));
        let _ = is_one;
        opened
            .is_ok_and(|source| source.specs().iter().all(|spec| source.tensor(&spec.name).is_ok()))
    });
}

#[test]
fn shard_index() {
    let place = Workplace::new();
    for entry in fs::read_dir(fixture("llama")).expect("a fixture") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_str().expect("a name");
        place.write(name, &fs::read(&path).expect("a fixture"));
    }
    place.fuzz("model.safetensors.index.json", |path| {
        Source::open(path.parent().expect("a folder")).is_ok()
    });
}

#[test]
fn gguf() {
    let place = Workplace::new();
    place.write("x.gguf", &fs::read(fixture("llama.gguf")).expect("a fixture"));
    place.fuzz("x.gguf", |path| {
        if let Ok(file) = Gguf::open(path) {
            for (name, _) in file.tensors() {
                assert!(file.values(name).is_some(), "a tensor that was placed is read");
            }
            for key in file.keys() {
                let _ = (file.text(key), file.texts(key), file.integers(key));
            }
        }
        let source = Source::open(path);
        source
            .is_ok_and(|source| source.specs().iter().all(|spec| source.tensor(&spec.name).is_ok()))
    });
}

#[test]
fn config_toml() {
    let place = Workplace::new();
    let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/shakespeare.toml");
    place.write("x.toml", &fs::read(reference).expect("a config"));
    place.fuzz("x.toml", |path| {
        config::load(path, &[]).is_ok_and(|plan| Plan::from_toml(&plan.to_toml()).is_ok())
    });
}

#[test]
fn plan_toml() {
    let place = Workplace::new();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/shakespeare.toml");
    let plan = config::load(&path, &[]).expect("a plan");
    place.write("plan.toml", plan.to_toml().as_bytes());
    place.fuzz("plan.toml", |path| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let read = Plan::from_toml(&text);
        read.is_ok_and(|read| read.meaning_changes(&plan, 0).is_empty())
    });
}

#[test]
fn beacon() {
    let place = Workplace::new();
    let mut beacon = Beacon::light(&place.path("run"), 0, "host").expect("a beacon");
    beacon.begin_step(12);
    beacon.show("backward", "block 3");
    drop(beacon);
    let run = place.path("run");
    place.fuzz("run/ranks/0", |_| {
        LastSeen::read(&run, 0).is_ok_and(|seen| seen.describe().contains("block 3"))
    });
}
