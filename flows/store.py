"""Buttons for a store, by which things go: what nothing needs, and a document. By default they only say what would."""

from flows.form import BUTTON, Count, SomeText, folder_of, form
from lmcore.settings.section import Text
from lmcore.upkeep.forget import forget
from lmcore.upkeep.garbage_collection import collect
from tasks.pages import show_table


@form(name="gc", flow_run_name="gc of {store}", **BUTTON)
def collect_garbage(keep_runs: Count = 3, grace_hours: Count = 24, dry_run: bool = True, store: Text = "") -> int:
    """Remove what no version and no newer run needs; the bytes that this gives back, or would.

    Args:
        keep_runs: Newest runs to keep with all that they need.
        grace_hours: Hours for which everything stays, whether it is needed or not.
        dry_run: Only say what would be removed.
        store: Folder of everything that is made. Empty: the environment variable LM_STORE, else ./store.
    """
    folder = folder_of(store)
    gone = collect(folder, keep_runs, 3600 * grace_hours, dry_run)
    done = "to be removed" if dry_run else "removed"
    show_table("gc", gone.rows(), f"{done} from {folder}: {len(gone.removed):,} ({gone.bytes:,} bytes)")
    return gone.bytes


@form(name="forget", flow_run_name="forget {document}", **BUTTON)
def forget_document(document: SomeText, dry_run: bool = True, store: Text = "") -> list[str]:
    """Purge a document from the store, and say what was trained on it; its hashes.

    Args:
        document: A hash of 16 hexadecimal digits, or a file on the machine that runs this. A file is cut into documents
            as each dataset was.
        dry_run: Only say what would be done.
        store: Folder of everything that is made. Empty: the environment variable LM_STORE, else ./store.
    """
    done = forget(folder_of(store), document, dry_run)
    about = "to be forgotten" if dry_run else "forgotten"
    show_table("forget", done.rows(dry_run), f"{about}: {done.summary}")
    return done.documents


BUTTONS = [collect_garbage, forget_document]
