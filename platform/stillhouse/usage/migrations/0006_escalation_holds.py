import django.db.models.deletion
import stillhouse.core.ids
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('accounts', '0003_local_only'),
        ('usage', '0005_feedback'),
    ]

    operations = [
        migrations.CreateModel(
            name='EscalationHold',
            fields=[
                ('id', stillhouse.core.ids.IdField(editable=False, max_length=40, prefix='req', primary_key=True, serialize=False)),
                ('alias', models.CharField(max_length=60)),
                ('amount', models.PositiveBigIntegerField()),
                ('at', models.DateTimeField()),
                ('workspace', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='+', to='accounts.workspace')),
            ],
            options={
                'indexes': [models.Index(fields=['workspace', 'alias'], name='usage_escal_workspa_554a64_idx')],
            },
        ),
    ]
