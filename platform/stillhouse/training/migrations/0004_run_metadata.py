from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('training', '0003_row_previews'),
    ]

    operations = [
        migrations.AddField(
            model_name='trainingrun',
            name='metadata',
            field=models.JSONField(db_default={}, default=dict),
        ),
    ]
