import json
from datetime import timedelta
from pathlib import Path
from typing import Any
import pytest
from django.utils import timezone
from playwright.sync_api import Browser
from stillhouse.datasets.actions import record_report
from stillhouse.datasets.models import Trial
from stillhouse.datasets.notes import add_comment, add_tag
from stillhouse.datasets.traffic import Pick, make_from_traffic
from stillhouse.datasets.trials import start_trial
from stillhouse.jobs.models import Job
from stillhouse.publishing.actions import publish
from stillhouse.publishing.keeping import start_keeping
from stillhouse.training.models import RowPreview
from stillhouse.training.previews import request_preview
from tests.e2e.test_pages import browser, site, world  # noqa: F401
from tests.registry import approved, available_base, make_ready, validation_report
from tests.web.test_traffic import keep
from tests.world import PASSWORD, World
from workers.contract import Mask
pytestmark = [pytest.mark.usefixtures("stores", "transactional_db")]
def test_shots(world: World, site: str, browser: Browser) -> None:
    version = approved(world.expert, world.lead); make_ready(version)
    alias = publish(by=world.lead, alias_name="clauses", version=version).alias
    start_keeping(by=world.lead, alias=alias, days=30)
    text = "Which kind of clause is this? The supplier invoices at the end of each month; invoices are due within 30 days of receipt."
    keep(world.lead, 1, '{"type": "payment"}', reasoning="It speaks of invoices and when they are due, so it is about payment.", prompt=[{"role":"system","content":"Answer as JSON."},{"role":"user","content":text}], rating="up")
    keep(world.lead, 2, '{"type": "liability"}', reasoning="It limits what one party owes.", prompt=[{"role":"user","content":"Either party may end this agreement with three months' notice."}], rating="down", correction='{"type": "termination"}')
    keep(world.lead, 3, '{"type": "notice"}', prompt=[{"role":"user","content":"Letters go to the registered office."}])
    keep(world.lead, 4, '', prompt=["a","b"])
    taken = make_from_traffic(by=world.expert, alias="clauses", picks=[Pick("req_acme3")], name="Traffic of clauses")
    record_report(version=taken, report=validation_report(valid=1, with_reasoning=1))
    data = world.dataset()
    record_report(version=data, report=validation_report(valid=10, with_reasoning=2))
    for tag in ("gold", "for-review", "2026-q4"): add_tag(by=world.lead, version=data, name=tag)
    for row, said in ((1, "The answer names the wrong party."), (2, "Is this still how we word it?\nAsk the legal team.")): add_comment(by=world.lead if row==1 else world.expert, version=data, row=row, text=said)
    base = available_base()
    request_preview(by=world.expert, version=data, base=base, policy="traces", max_length=2048)
    RowPreview.objects.update(body={"rows":[{"row":n,"source":"","samples":[{"prompt_tokens":12,"target_tokens":9,"trained_tokens":9,"fits":True,"segments":[{"text":"<|im_start|>user\nQuestion %d<|im_end|>\n"%n,"trained":False,"think":False},{"text":"Answer %d<|im_end|>"%n,"trained":True,"think":False}]}]} for n in (1,2,3)],"complete":True,"counted":3})
    trial = start_trial(by=world.expert, version=data, operations=[Mask(kinds=["email"])])
    Job.objects.filter(pk=trial.job_id).update(state="succeeded")
    Trial.objects.update(body={"operations":[{"op":"mask","rows_in":10,"rows_out":10,"changed":2,"found":{"email":3},"examples":[{"row":2,"source":"","origin":0,"before":"Write to jane.doe@example.com before May.","after":"Write to [EMAIL] before May."},{"row":7,"source":"","origin":0,"before":"cc: erik@example.org","after":"cc: [EMAIL]"}]}],"rows":[10],"refused":[0],"report":None,"seconds":0.1,"peak_rss_bytes":1})
    out = Path("/tmp/sh/traffic/shots"); out.mkdir(exist_ok=True); errors: list[Any] = []
    d, t = f"datasets/{data.dataset_id}", f"datasets/{taken.dataset_id}"
    paths = {"traffic": f"aliases/{alias.pk}/traffic/", "aliases": "aliases/", "list": "datasets/", "listtag": "datasets/?tag=gold", "dataset": f"{d}/", "version": f"{d}/versions/1/", "seen": f"{d}/versions/1/as-seen/", "comments": f"{d}/versions/1/comments/", "origin": f"{t}/versions/1/", "trial": f"trials/{trial.pk}/"}
    for name, options in {"light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"}, "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"}, "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light"}}.items():
        context = browser.new_context(base_url=site, **options); page = context.new_page()
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.goto("/accounts/login/"); page.get_by_label("E-mail").fill(world.lead.user.email); page.get_by_label("Password").fill(PASSWORD); page.get_by_role("button", name="Sign in").click(); page.wait_for_url("**/w/acme/")
        for shot, path in paths.items():
            page.goto(f"/w/acme/{path}"); page.wait_for_timeout(150)
            if not page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"): errors.append(f"wide {name} {shot}")
            page.screenshot(path=out / f"{shot}-{name}.png", full_page=True)
        if name == "light":
            page.goto(f"/w/acme/{d}/versions/1/"); page.get_by_label("New tag").fill("Hand checked"); page.keyboard.press("Enter"); page.get_by_text("hand-checked").wait_for()
            page.goto(f"/w/acme/{d}/versions/1/as-seen/"); page.locator("#row-3 summary").click(); page.locator("#row-3 textarea").fill("From the keyboard"); page.locator("#row-3").get_by_role("button", name="Comment").click(); page.get_by_text("From the keyboard").wait_for()
            errors.append(page.url) if "row-3" not in page.url else None
            page.goto(f"/w/acme/aliases/{alias.pk}/traffic/"); page.locator("#take-req_acme2").check(); page.get_by_label("Name of the new one").fill("From the browser"); page.get_by_role("button", name="Make a version").click(); page.get_by_text("Your file").or_(page.get_by_text("It is being checked now")).first.wait_for()
        context.close()
    assert errors == []
