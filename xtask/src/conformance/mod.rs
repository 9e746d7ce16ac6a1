//! `cargo xtask conformance`: the real engine beside us, term by term, over every architecture it knows.

pub(crate) mod architectures;
mod cut;
mod engine;
mod figures;
mod gguf;
mod grid;
mod install;
pub(crate) mod peers_of_the_engine;
mod places;
mod record;
mod report;
mod score;
mod subjects;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use engine::{Checker, Kept};
use figures::Ready;
use install::{Engine, PACKAGE, hash, make};
use places::Where;
use record::Asked;
use score::{Row, Verdict, judge};
use subjects::{Origin, Subject};

/// What to run.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// A part of the models and settings.
    quick: bool,
    /// Another release of the package.
    package: Option<String>,
    /// Only models whose name contains this.
    only: Option<String>,
    /// How many wrong rows to name.
    worst: usize,
    /// How many settings to ask the engine at most that it has not answered before; the others wait for another run.
    most: Option<usize>,
    /// Keep the answers among the fixtures.
    record: bool,
}

impl Plan {
    /// The part that `cargo xtask test` runs.
    pub(crate) fn habit() -> Self {
        Self { quick: true, worst: 20, ..Self::default() }
    }

    /// Reads the task's options.
    pub(crate) fn parse(words: &[&str]) -> Result<Self, String> {
        let mut plan = Self { worst: 20, ..Self::default() };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().map(|value| (*value).to_owned()).ok_or_else(|| format!("{word} needs a value"));
            match *word {
                "--quick" => plan.quick = true,
                "--record" => plan.record = true,
                "--package" => plan.package = Some(value()?),
                "--only" => plan.only = Some(value()?),
                "--most" => plan.most = Some(value()?.parse().map_err(|_| "--most needs a number".to_owned())?),
                "--worst" => plan.worst = value()?.parse().map_err(|_| "--worst needs a number".to_owned())?,
                other => return Err(format!("conformance: unknown option {other}")),
            }
        }
        Ok(plan)
    }

    fn package(&self) -> &str {
        self.package.as_deref().unwrap_or(PACKAGE)
    }
}

/// As part of the tests: runs where the engine is installed or can be, and says in a line why not otherwise.
pub(crate) fn habit() -> Result<(), String> {
    let plan = Plan::habit();
    if let Some(lacking) = install::missing(plan.package()) {
        println!("== conformance: skipped, {lacking}");
        return Ok(());
    }
    if let Err(problem) = install::engine(plan.package()) {
        println!("== conformance: skipped, {}", problem.lines().next().unwrap_or_default());
        return Ok(());
    }
    run(&plan)
}

/// Runs the comparison and prints its table.
pub(crate) fn run(plan: &Plan) -> Result<(), String> {
    println!("== conformance");
    let engine = install::engine(plan.package())?;
    let (asked, waiting) = compare(&engine, plan)?;
    let rows: Vec<Row> = asked.iter().map(|asked| asked.row.clone()).collect();
    report::print(&engine, &rows, plan.worst);
    if waiting > 0 {
        println!("   {waiting} settings wait for the next run: what was answered is kept");
    }
    if plan.record {
        let is_whole = waiting == 0 && !plan.quick && plan.only.is_none();
        record::record(&engine, &asked, is_whole)?;
    }
    let wrong = rows.iter().filter(|row| matches!(row.verdict, Verdict::Wrong(_))).count();
    if wrong > 0 {
        return Err(format!("{wrong} of {} rows differ from llama.cpp@{}", rows.len(), engine.release.build));
    }
    Ok(())
}

/// The questions about one model in one place.
#[derive(Debug)]
struct Task<'a> {
    subject: &'a Subject,
    place: Where,
    count: usize,
}

/// Asks both sides everything; how many settings were left for another run.
fn compare(engine: &Engine, plan: &Plan) -> Result<(Vec<Asked>, usize), String> {
    let models = engine.folder.join("models");
    make(&models)?;
    let mut subjects = subjects::all(plan.quick)?;
    if let Some(only) = &plan.only {
        subjects.retain(|subject| subject.name.contains(only));
    }
    let mut tasks = VecDeque::new();
    for subject in &subjects {
        let count = match subject.origin {
            _ if plan.quick => 3,
            // Other file types of a model differ in their weights only.
            Origin::Real if !subject.name.ends_with("Q4_K_M") => 3,
            Origin::Real => 12,
            Origin::Zoo | Origin::Made => 8,
        };
        for place in [Where::Processor, Where::Cuda(890)] {
            tasks.push_back(Task { subject, place, count });
        }
        let divided = match subject.origin {
            Origin::Real if plan.quick => 2,
            Origin::Zoo | Origin::Made if plan.quick => 1,
            Origin::Real if subject.name.ends_with("Q4_K_M") => 8,
            Origin::Real => 2,
            Origin::Zoo | Origin::Made => 3,
        };
        for place in [Where::Partial(890), Where::Two(890)] {
            tasks.push_back(Task { subject, place, count: divided });
        }
    }
    let length: usize = tasks.iter().map(|task| task.count).sum();
    let bar = progress(u64::try_from(length).unwrap_or(u64::MAX));
    let kept = Kept::read(engine);
    let asking = Asking { left: AtomicUsize::new(plan.most.unwrap_or(usize::MAX)), waiting: AtomicUsize::new(0) };
    let queue = Mutex::new(tasks);
    let done: Mutex<Vec<Asked>> = Mutex::default();
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || -> Result<(), String> {
        let mut checkers: Vec<(Where, Checker)> = Vec::new();
        loop {
            let Some(task) = lock(&queue)?.pop_front() else { return Ok(()) };
            let (rows, new) = one(engine, &task, (&kept, &asking), &models, &mut checkers)?;
            bar.inc(u64::try_from(task.count).unwrap_or(0));
            let mut done = lock(&done)?;
            done.extend(rows);
            // As they come: a run that is interrupted goes on where it was.
            kept.add(&new)?;
        }
    };
    let results: Vec<Result<(), String>> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        handles.into_iter().map(|handle| handle.join().unwrap_or_else(|_| Err("a worker panicked".to_owned()))).collect()
    });
    bar.finish_and_clear();
    let mut rows = done.into_inner().map_err(|_| "a worker panicked")?;
    results.into_iter().collect::<Result<(), String>>()?;
    rows.sort_by(|a, b| (&a.row.model, &a.row.place, &a.row.setting).cmp(&(&b.row.model, &b.row.place, &b.row.setting)));
    Ok((rows, asking.waiting.into_inner()))
}

/// What the engine may still be asked in this run.
#[derive(Debug)]
struct Asking {
    left: AtomicUsize,
    /// Settings that wait for another run.
    waiting: AtomicUsize,
}

impl Asking {
    /// Whether one more question may be asked.
    fn takes_one(&self) -> bool {
        let taken = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        if !taken {
            self.waiting.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }
}

fn lock<T>(mutex: &Mutex<T>) -> Result<std::sync::MutexGuard<'_, T>, String> {
    mutex.lock().map_err(|_| "a worker panicked".to_owned())
}

fn progress(length: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("   {bar:40} {pos}/{len} settings, {elapsed} of about {duration}");
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
    style.map_or_else(|_| bar.clone(), |style| bar.clone().with_style(style))
}

/// Rows, and the answers that the engine gave anew.
type Answers = (Vec<Asked>, Vec<(u64, Value)>);

/// All settings of one task.
fn one(
    engine: &Engine,
    task: &Task<'_>,
    (kept, asking): (&Kept, &Asking),
    models: &Path,
    checkers: &mut Vec<(Where, Checker)>,
) -> Result<Answers, String> {
    let subject = task.subject;
    let ready = Ready::of(subject);
    let (mut rows, mut new) = (Vec::new(), Vec::new());
    let mut settings = grid::settings(&subject.name, task.place, task.count);
    // A model is loaded once for all settings that put its weights alike.
    settings.sort_by_key(|setting| (setting.repack, setting.placed.line()));
    for setting in settings {
        let line = setting.line();
        let key = hash(format!("{:016x} {} {line}", subject.fingerprint(), task.place.name()).as_bytes());
        let (answer, fresh) = match kept.get(key) {
            Some(answer) => (answer.clone(), false),
            None if !asking.takes_one() => continue,
            None => {
                let file = subjects::file(models, subject)?;
                let answer = checker(engine, task.place, checkers)?.ask(&format!("id=0\tmodel={}\t{line}", file.display()))?;
                new.push((key, answer.clone()));
                (answer, true)
            }
        };
        let theirs = figures::theirs(&answer);
        let (ours, our_time) = figures::ours(&ready, &engine.release.build, task.place, &setting);
        let micros = answer.get("plan_us").and_then(Value::as_u64).unwrap_or(0);
        let times = (our_time, Duration::from_micros(micros), fresh);
        let row = judge(subject, task.place, &setting, (&ours, &theirs), times);
        rows.push(Asked { place: task.place, setting, answer, row });
    }
    Ok((rows, new))
}

fn checker<'a>(engine: &Engine, place: Where, checkers: &'a mut Vec<(Where, Checker)>) -> Result<&'a mut Checker, String> {
    let index = match checkers.iter().position(|(known, _)| *known == place) {
        Some(index) => index,
        None => {
            checkers.push((place, Checker::start(engine, place)?));
            checkers.len() - 1
        }
    };
    checkers.get_mut(index).map(|(_, checker)| checker).ok_or_else(|| "no checker".to_owned())
}
