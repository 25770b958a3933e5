//! Mixtures, packing and receipts through the program: what it trains on is what it says.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use grove::config::{self, Plan};
use grove::corpus::Data;
use grove::guard::Exclusions;
use grove_data::{Batch, Loader, Source, Stage};
use grove_parallel::collective::ThreadGroup;

use crate::program::Program;

/// Two sources of documents of many lengths, half of a validation share each.
const SOURCES: &str = r#"
[[data.sources]]
name = "web"
tokens = "web"
weight = 3.0
validation_fraction = 0.2
[[data.sources]]
name = "code"
tokens = "code"
validation_fraction = 0.2
[[data.stages]]
from_step = 12
weights = { web = 1.0, code = 1.0 }
"#;

/// Documents of 1 to 60 bytes and some, each with its number.
fn documents(name: &str, count: usize) -> String {
    let mut lines = String::new();
    for number in 0..count {
        let text = format!("{name} {number} ").repeat(1 + number * 7 % 11);
        writeln!(lines, "{{\"body\": {{\"text\": {text:?}}}, \"score\": {}}}", number % 10)
            .expect("a string takes everything");
    }
    lines
}

fn with_mixture(program: &Program) {
    for (name, count) in [("web", 150), ("code", 90)] {
        let file = format!("{name}.jsonl");
        fs::write(program.path(&file), documents(name, count)).expect("a file");
        let said = program.succeed(&[
            "tokenize",
            &file,
            name,
            "--field",
            "body.text",
            "--end-of-document",
            "id:0",
            "--shard-tokens",
            "2000",
        ]);
        assert!(said.contains(&format!("of {count} documents")), "{said}");
    }
    let text = fs::read_to_string(program.path("config.toml")).expect("a config");
    let (before, after) = text.split_once("text = \"text.txt\"\n").expect("the config has a text");
    let after = after.replace("validation_fraction = 0.2\n", "packing = \"best_fit\"\n");
    let (data, after) = after.split_once("[batch]").expect("the config has batches");
    // Long enough for several documents in a row.
    let after = after.replace("sequence_length = 16", "sequence_length = 48");
    let text = format!("{before}{data}{SOURCES}[batch]{after}");
    fs::write(program.path("config.toml"), text).expect("a config");
}

/// The plan as a process in the program's folder would have it.
fn plan(program: &Program, overrides: &[&str]) -> Plan {
    let overrides: Vec<String> = overrides.iter().map(|&over| over.to_owned()).collect();
    let mut plan = config::load(&program.path("config.toml"), &overrides).expect("a plan");
    plan.run.dir = program.path(&plan.run.dir.display().to_string());
    plan
}

#[test]
fn a_packed_mixture_is_the_same_run_at_any_number_of_ranks() {
    let program = Program::new();
    with_mixture(&program);
    let said = program.train(1, &["run.dir='one'"]);
    assert!(said.contains("from step 12: weights code 1, web 1"), "{said}");
    for ranks in [2, 4] {
        let dir = format!("of{ranks}");
        program.train(ranks, &[&format!("run.dir='{dir}'")]);
        assert_eq!(program.losses(&dir), program.losses("one"), "{ranks} ranks");
        assert_eq!(program.hash(&dir, 20), program.hash("one", 20), "{ranks} ranks");
    }
    let records = program.step_records("one");
    let positions = 20 * 48 * 2 * 4;
    let tokens = records.last().expect("a record")["num_tokens"].as_u64().expect("a number");
    // Padding and the first tokens of documents are never counted.
    assert!(tokens < positions && tokens > positions * 3 / 4, "{tokens} of {positions}");
    let text = fs::read_to_string(program.path("one/metrics.jsonl")).expect("metrics");
    let eval = text.lines().rfind(|line| line.contains("\"eval\"")).expect("an evaluation");
    let eval: serde_json::Value = serde_json::from_str(eval).expect("JSON");
    let loss = |name: &str| eval["sources"][name].as_f64().expect("a loss by source");
    let (web, code) = (loss("web"), loss("code"));
    let all = eval["loss"].as_f64().expect("a loss");
    assert!(web != code && all > web.min(code) && all < web.max(code), "{eval}");
}

#[test]
fn masks_change_the_run_and_packing_without_them_is_told() {
    let program = Program::new();
    with_mixture(&program);
    program.train(1, &["run.dir='masked'", "run.steps=2"]);
    program.train(1, &["run.dir='open'", "run.steps=2", "data.mask_documents=false"]);
    assert_ne!(program.losses("masked"), program.losses("open"));
    let said = program.fail(&["plan", "config.toml", "--set", "data.packing=best"]);
    assert!(said.contains("expected \"contiguous\" or"), "{said}");
}

/// A mixture whose weights change when the run is resumed, on another number of ranks: the steps
/// before are what they were, the record says so, and receipts are what was trained on.
#[test]
fn a_changed_mixture_keeps_its_past() {
    let program = Program::new();
    with_mixture(&program);
    program.train(2, &["run.dir='run'", "schedule.kind=constant"]);
    let first_losses = program.losses("run");
    let text = fs::read_to_string(program.path("config.toml")).expect("a config");
    let changed =
        text.replace("weight = 3.0", "weight = 0.5").replace("from_step = 12", "from_step = 30");
    fs::write(program.path("config.toml"), changed).expect("a config");
    let over =
        ["run.dir='run'", "schedule.kind=constant", "run.steps=40", "checkpoint.resume=true"];
    let said = program.train(1, &over);
    for line in [
        "from step 0: weights code 1, web 3",
        "from step 12:",
        "from step 20: weights code 1, web 0.5",
        "from step 30:",
    ] {
        assert!(said.contains(line), "{line}:\n{said}");
    }
    assert_eq!(program.losses("run")[..20], first_losses[..]);

    let plan = plan(&program, &over);
    let data = Data::open(&plan).expect("the data");
    let newest = grove::folder::newest(&plan).expect("a folder");
    let stages = grove::folder::stages(&plan, newest.as_ref()).expect("a record");
    let firsts: Vec<u64> = stages.iter().map(|stage| stage.first_step).collect();
    assert_eq!(firsts, [0, 12, 20, 30]);
    let loader = data.loader(&plan, &stages).expect("a loader");
    let sources: BTreeMap<&str, &Source> = data.training_sources().collect();
    for (ranks, first_step) in [(1, 0), (2, 3), (4, 17), (2, 19), (1, 27), (4, 36)] {
        for (batch, step, index) in batches_of_ranks(&plan, (&data, &stages), ranks, first_step) {
            check_receipt(&loader, &sources, &batch, (step, index));
        }
    }
}

/// The batches that the ranks of a run train on in two steps, with their places.
fn batches_of_ranks(
    plan: &Plan,
    (data, stages): (&Data, &[Stage]),
    ranks: usize,
    first_step: u64,
) -> Vec<(Batch, u64, u64)> {
    let mut dumped = Vec::new();
    for collective in ThreadGroup::new(ranks) {
        let batches = data
            .batches(plan, &collective, (first_step, &Exclusions::default()), stages)
            .expect("batches");
        let assignment = grove_parallel::Assignment::new(4, ranks).expect("enough of them");
        for step in first_step..first_step + 2 {
            for index in assignment.of_rank(grove_parallel::Collective::rank(&collective)) {
                dumped.push((batches.next().expect("a batch"), step, index as u64));
            }
        }
    }
    assert_eq!(dumped.len(), 8, "each micro-batch of two steps is some rank's");
    dumped
}

/// What a receipt says is in the rows is in them, and nothing else counts.
fn check_receipt(
    loader: &Loader,
    sources: &BTreeMap<&str, &Source>,
    batch: &Batch,
    (step, index): (u64, u64),
) {
    let (mut rebuilt, mut starts) = (vec![0; batch.tokens.len()], Vec::new());
    for receipt in loader.receipt(step, index).expect("a receipt") {
        let row = receipt.row * (batch.sequence_length + 1);
        let mut end = 0;
        for piece in receipt.pieces {
            let columns = row + piece.columns.start..row + piece.columns.end;
            let source = sources[receipt.source.as_str()];
            source.read(piece.tokens.start, &mut rebuilt[columns]).expect("tokens");
            starts.push((receipt.row * batch.sequence_length + piece.columns.start) as u32);
            end = piece.columns.end;
            let document = piece.document.expect("shards know their documents");
            let found = loader.seen(&receipt.source, document, step..step + 1).expect("a search");
            let is_here = found.iter().any(|sighting| {
                (sighting.micro_batch, sighting.row) == (index, receipt.row)
                    && sighting.tokens == piece.tokens
            });
            assert!(is_here, "document {document} is not seen at step {step}");
        }
        if end < batch.sequence_length {
            starts.push((receipt.row * batch.sequence_length + end) as u32);
        }
    }
    assert_eq!(rebuilt, batch.tokens, "step {step}, micro-batch {index}");
    assert_eq!(starts, batch.segment_starts, "step {step}, micro-batch {index}");
}

#[test]
fn what_cannot_go_on_is_refused_by_name() {
    let program = Program::new();
    with_mixture(&program);
    program.train(1, &["run.steps=10", "schedule.kind=constant"]);
    let config = fs::read_to_string(program.path("config.toml")).expect("a config");
    let resume = |text: &str| {
        fs::write(program.path("config.toml"), text).expect("a config");
        let sets = ["run.steps=12", "schedule.kind=constant"];
        let mut arguments = vec!["train", "config.toml", "--resume"];
        sets.iter().for_each(|set| arguments.extend(["--set", set]));
        program.fail(&arguments)
    };
    let said = resume(&config.replace("best_fit", "document_aligned"));
    assert!(said.contains("data.packing: \"best_fit\" -> \"document_aligned\""), "{said}");
    let said = resume(
        &config.replace("name = \"code\"", "name = \"core\"").replace("code = 1.0", "core = 1.0"),
    );
    assert!(said.contains("data.sources"), "{said}");
    // Other tokens under the same name.
    fs::remove_dir_all(program.path("code")).expect("a folder");
    program.succeed(&["tokenize", "text.txt", "code", "--document", "line"]);
    let said = resume(&config);
    assert!(said.contains("code") && said.contains("fingerprint"), "{said}");
}

#[test]
fn at_seen_and_stats_answer() {
    let program = Program::new();
    with_mixture(&program);
    let at = program.succeed(&["data", "at", "--config", "config.toml", "--step", "5"]);
    assert!(at.contains("step 5, micro-batch 0 (rank 0), row 0: source "), "{at}");
    assert!(at.contains("web.jsonl record ") && at.contains("\"web "), "{at}");
    let of_rank = ["data", "at", "--config", "config.toml", "--step", "5", "--ranks", "2"];
    let both = program.succeed(&of_rank);
    let parts = ["0", "1"].map(|rank| program.succeed(&[&of_rank[..], &["--rank", rank]].concat()));
    assert_eq!(both, parts.concat());
    assert_eq!(both.matches("row 0").count(), at.matches("row 0").count());

    // A piece of the first row, asked for by the record that it was made from.
    let line = at.lines().find(|line| line.contains(", from ")).expect("a piece");
    let (_, origin) = line.split_once(", from ").expect("an origin");
    let (file, record) = origin.split_once(" record ").expect("a record");
    let asked = format!("{file}:{record}");
    let seen = program.succeed(&["data", "seen", "--config", "config.toml", &asked]);
    assert!(seen.contains("step 5, micro-batch "), "{asked}:\n{seen}");

    let stats = program.succeed(&["data", "stats", "--config", "config.toml"]);
    assert!(stats.contains("web:") && stats.contains("150 documents"), "{stats}");
    assert!(stats.contains("% of the rows of 20 steps"), "{stats}");
    let stats = program.succeed(&["data", "stats", "code", "--context", "20"]);
    assert!(stats.contains("90 documents") && stats.contains("longer than 20 tokens"), "{stats}");

    let said = program.fail(&["data", "seen", "--config", "config.toml", "nowhere:3"]);
    assert!(said.contains("nowhere") && said.contains("code, web"), "{said}");
    let said = program.fail(&["data", "at", "--config", "config.toml", "--step", "0"]);
    assert!(said.contains("steps count from 1"), "{said}");
}

#[test]
fn tokenize_takes_many_files_and_says_what_it_left_out() {
    let program = Program::new();
    fs::create_dir(program.path("texts")).expect("a folder");
    fs::write(program.path("texts/a.jsonl"), documents("a", 40)).expect("a file");
    fs::write(program.path("texts/b.jsonl"), documents("a", 40) + &documents("b", 20))
        .expect("a file");
    let basic = ["tokenize", "texts/*.jsonl", "out", "--field", "body.text", "--deduplicate"];
    let scored = [&basic[..], &["--score-field", "score", "--min-score", "5"]].concat();
    let said = program.succeed(&scored);
    assert!(said.contains("of 30 documents"), "{said}");
    assert!(said.contains("50 of 100 records left out: outside the scores"), "{said}");
    assert!(said.contains("20 of 100 records left out: duplicates"), "{said}");
    // Done already: the same answer, nothing written anew.
    assert!(program.succeed(&scored).contains("of 30 documents"));
    let said = program.fail(&basic);
    assert!(said.contains("out") && said.contains("options"), "{said}");

    fs::write(program.path("bad.jsonl"), "{\"text\": \"x\"}\n{\"text\": \n").expect("a file");
    let said = program.fail(&["tokenize", "bad.jsonl", "bad"]);
    assert!(said.contains("bad.jsonl") && said.contains('2'), "{said}");
    let said = program.succeed(&["tokenize", "bad.jsonl", "bad", "--bad-records", "skip"]);
    assert!(said.contains("1 of 2 records left out: broken"), "{said}");
    assert!(said.contains("bad.jsonl record 2"), "{said}");
}

#[test]
fn a_tokenizer_is_made_and_used() {
    let program = Program::new();
    let said = program.succeed(&[
        "tokenizer",
        "train",
        "text.txt",
        "tokenizer.json",
        "--vocab-size",
        "300",
    ]);
    assert!(said.contains("tokenizer.json: 300 tokens"), "{said}");
    let said = program.succeed(&[
        "tokenize",
        "text.txt",
        "tokens",
        "--tokenizer",
        "tokenizer.json",
        "--document",
        "line",
    ]);
    assert!(said.contains("of 400 documents (ended by token 0)"), "{said}");
}

#[test]
fn a_mixture_that_cannot_be_is_refused() {
    let program = Program::new();
    with_mixture(&program);
    let config = fs::read_to_string(program.path("config.toml")).expect("a config");
    for (from, to, words) in [
        ("weight = 3.0", "wieght = 3.0", "unknown key `data.sources[0].wieght`"),
        ("weight = 3.0", "weight = \"x\"", "key `data.sources[0].weight`"),
        ("weight = 3.0", "weight = -1.0", "data.sources[0].weight = -1.0"),
        ("name = \"code\"", "name = \"web\"", "is the name of another source too"),
        ("name = \"web\"\n", "", "missing key `data.sources[0].name`"),
        ("code = 1.0", "cod = 1.0", "is no source; use web, code"),
        ("{ web = 1.0, code = 1.0 }", "{ web = 0 }", "sum to 0"),
        ("from_step = 12", "from_step = 0", "must be above 0"),
        ("from_step = 12", "from_step = 1\nfrom_tokens = 4", "one of from_step and from_tokens"),
        ("packing", "tokens = \"web\"\npacking", "keys `data.tokens` and `data.sources` are both"),
        ("packing", "validation_fraction = 0.1\npacking", "data.sources is set"),
        ("best_fit\"", "contiguous\"\nmask_documents = true", "does not mind documents"),
    ] {
        let text = config.replacen(from, to, 1);
        assert_ne!(text, config, "{from}");
        fs::write(program.path("config.toml"), text).expect("a config");
        let said = program.fail(&["plan", "config.toml"]);
        assert!(said.contains(words), "{to:?} should be refused by {words:?}:\n{said}");
    }
}
